//! Calico's settings of its agent, FelixConfiguration, as clusters have them: of more than a hundred fields three are
//! modelled. Most of the others say how Felix works and not what it lets through; some could change that.
//!
//! The names are those of Calico 3.32 and of the releases before it that had more
//! (<https://docs.tigera.io/calico/latest/reference/resources/felixconfig>).

use serde_json::Value;

pub(super) const KIND: &str = "FelixConfiguration";

/// How a field bears on verdicts.
pub(super) enum Bearing {
    /// Not at all, or not with this value.
    None,
    /// It changes what passes.
    Changes {
        /// What happens, as a clause.
        why: &'static str,
        /// The value with which it does not.
        default: &'static str,
    },
}

/// A field that changes what passes.
struct Deciding {
    name: &'static str,
    /// Values with which it does not, the first of them Calico's default.
    harmless: &'static [&'static str],
    why: &'static str,
}

const fn deciding(name: &'static str, harmless: &'static [&'static str], why: &'static str) -> Deciding {
    Deciding { name, harmless, why }
}

const BY_HOST: &str = "the host's own rules judge what policy allows once more";
const UNKNOWN_DENIAL: &str = "what policy denies may pass";
const TUNNELS: &str = "pods may send packets of tunnels that Calico drops otherwise, whatever policy says";
const METADATA: &str = "pods may reach a metadata server whatever policy says";

const DECIDING: [Deciding; 18] = [
    deciding(
        "chainInsertMode",
        &["Insert"],
        "the host's own rules come before policy",
    ),
    deciding("iptablesFilterAllowAction", &["Accept"], BY_HOST),
    deciding("iptablesMangleAllowAction", &["Accept"], BY_HOST),
    deciding("nftablesFilterAllowAction", &["Accept"], BY_HOST),
    deciding("nftablesMangleAllowAction", &["Accept"], BY_HOST),
    // A denial that the sender is told of is one all the same.
    deciding("iptablesFilterDenyAction", &["Drop", "Reject"], UNKNOWN_DENIAL),
    deciding("nftablesFilterDenyAction", &["Drop", "Reject"], UNKNOWN_DENIAL),
    deciding("dropActionOverride", &["Drop", "LogAndDrop"], UNKNOWN_DENIAL),
    deciding(
        "workloadSourceSpoofing",
        &["Disabled"],
        "pods may send from addresses that are not theirs",
    ),
    deciding("allowVXLANPacketsFromWorkloads", &["false"], TUNNELS),
    deciding("allowIPIPPacketsFromWorkloads", &["false"], TUNNELS),
    deciding("ipv6Support", &["true"], "policy does not judge IPv6"),
    deciding(
        "interfaceExclude",
        &["kube-ipvs0"],
        "host endpoints do not judge at the interfaces named",
    ),
    deciding(
        "externalNodesList",
        &["[]"],
        "tunnels from these addresses pass host endpoints",
    ),
    deciding("metadataAddr", &["127.0.0.1", "none"], METADATA),
    deciding("metadataPort", &["8775"], METADATA),
    deciding(
        "istioAmbientMode",
        &["Disabled"],
        "policy judges packets of a mesh by what they carry",
    ),
    // Its scope, where an object is not for all nodes.
    deciding(
        "nodeSelector",
        &["all()"],
        "the settings are not those of all nodes",
    ),
];

/// Fields that change nothing about what passes: how Felix watches, tells and repairs, how routes, tunnels and translated
/// addresses are made, and by which means of the kernel policy is carried out.
const OTHERS: &str = "
    awsSrcDstCheck
    bpfAttachType bpfCTLBLogFilter bpfConnectTimeLoadBalancing bpfConnectTimeLoadBalancingEnabled
    bpfConntrackCleanupMode bpfConntrackLogLevel bpfConntrackMode bpfConntrackTimeouts bpfDSROptoutCIDRs
    bpfDataIfacePattern bpfDisableGROForIfaces bpfDisableUnprivileged bpfEnabled bpfEnforceRPF
    bpfExcludeCIDRsFromNAT bpfExportBufferSizeMB bpfExtToServiceConnmark bpfExternalServiceMode
    bpfForceTrackPacketsFromIfaces bpfHostConntrackBypass bpfHostNetworkedNATWithoutCTLB bpfJITHardening
    bpfKubeProxyEndpointSlicesEnabled bpfKubeProxyHealthzPort bpfKubeProxyIptablesCleanupEnabled
    bpfKubeProxyMinSyncPeriod bpfL3IfacePattern bpfLogFilters bpfLogLevel bpfMaglevMaxEndpointsPerService
    bpfMaglevMaxServices bpfMapSizeConntrack bpfMapSizeConntrackCleanupQueue bpfMapSizeConntrackScaling
    bpfMapSizeIPSets bpfMapSizeIfState bpfMapSizeNATAffinity bpfMapSizeNATBackend bpfMapSizeNATFrontend
    bpfMapSizePerCpuConntrack bpfMapSizeRoute bpfPSNATPorts bpfPolicyDebugEnabled bpfProfiling bpfRedirectToPeer
    cgroupV2Path
    dataplaneDriver dataplaneWatchdogTimeout debugDisableLogDropping debugHost debugMemoryProfilePath debugPort
    debugSimulateCalcGraphHangAfter debugSimulateDataplaneApplyDelay debugSimulateDataplaneHangAfter
    deviceRouteProtocol deviceRouteSourceAddress deviceRouteSourceAddressIPv6 disableConntrackInvalidCheck
    endpointReportingDelay endpointReportingEnabled endpointStatusPathPrefix
    featureDetectOverride featureGates floatingIPs flowLogsCollectorDebugTrace flowLogsFlushInterval
    flowLogsGoldmaneServer flowLogsLocalReporter flowLogsPolicyEvaluationMode
    genericXDPEnabled goGCThreshold goMaxProcs goMemoryLimitMB
    healthEnabled healthHost healthPort healthTimeoutOverrides
    interfacePrefix interfaceRefreshInterval ipForwarding ipipEnabled ipipMTU ipsetsRefreshInterval iptablesBackend
    ipv4ElevatedRoutePriority ipv4NormalRoutePriority ipv6ElevatedRoutePriority ipv6NormalRoutePriority
    iptablesLockFilePath iptablesLockProbeInterval iptablesLockTimeout iptablesMarkMask
    iptablesNATOutgoingInterfaceFilter iptablesPostWriteCheckInterval iptablesRefreshInterval istioDSCPMark
    kubeNodePortRanges liveMigrationRouteConvergenceTime
    logActionRateLimit logActionRateLimitBurst logDebugFilenameRegex logFilePath logPrefix logSeverityFile
    logSeverityScreen logSeveritySys
    maxIpsetSize mtuIfacePattern
    natOutgoingAddress natOutgoingExclusions natPortRange netlinkTimeout nftablesMarkMask nftablesMode
    nftablesRefreshInterval
    openstackRegion
    policySyncPathPrefix programClusterRoutes prometheusGoMetricsEnabled prometheusMetricsCAFile
    prometheusMetricsCertFile prometheusMetricsClientAuth prometheusMetricsEnabled prometheusMetricsHost
    prometheusMetricsKeyFile prometheusMetricsPort prometheusProcessMetricsEnabled prometheusWireGuardMetricsEnabled
    removeExternalRoutes reportingInterval reportingTTL requireMTUFile routeRefreshInterval routeSource
    routeSyncDisabled routeTableRange routeTableRanges
    serviceLoopPrevention sidecarAccelerationEnabled
    usageReportingEnabled usageReportingInitialDelay usageReportingInterval useInternalDataplaneDriver
    vxlanEnabled vxlanMTU vxlanMTUV6 vxlanPort vxlanVNI
    windowsManageFirewallRules wireguardEnabled wireguardEnabledV6 wireguardHostEncryptionEnabled
    wireguardInterfaceName wireguardInterfaceNameV6 wireguardKeepAlive wireguardListeningPort
    wireguardListeningPortV6 wireguardMTU wireguardMTUV6 wireguardRoutingRulePriority wireguardThreadingEnabled
    xdpEnabled xdpRefreshInterval
";

/// How a field that is not modelled bears on verdicts; nothing for one that Calico does not have.
pub(super) fn bearing(name: &str, value: &Value) -> Option<Bearing> {
    if let Some(field) = DECIDING.iter().find(|field| field.name == name) {
        let text = text(value);
        let is_harmless = |known: &&str| known.eq_ignore_ascii_case(&text);
        let default = field.harmless.first().copied().unwrap_or_default();
        // An empty text is not set.
        return Some(match text.is_empty() || field.harmless.iter().any(is_harmless) {
            true => Bearing::None,
            false => Bearing::Changes {
                why: field.why,
                default,
            },
        });
    }
    let is_known = OTHERS.split_ascii_whitespace().any(|known| known == name);
    is_known.then_some(Bearing::None)
}

/// Writes what Calico writes in other ways as the API of this project has it: actions in any case, and members of failsafe
/// ports that are empty and so not there.
pub(super) fn settle(object: &mut Value) {
    let Some(Value::Object(spec)) = object.get_mut("spec") else {
        return;
    };
    if let Some(Value::String(action)) = spec.get_mut("defaultEndpointToHostAction") {
        let known = ["Drop", "Return", "Accept"];
        if let Some(known) = known.iter().find(|known| known.eq_ignore_ascii_case(action)) {
            (*known).clone_into(action);
        }
    }
    spec.retain(|name, value| name != "defaultEndpointToHostAction" || *value != "");
    for field in ["failsafeInboundHostPorts", "failsafeOutboundHostPorts"] {
        let ports = spec.get_mut(field).and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            port.retain(|_, value| *value != "");
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_field_has_one_bearing() {
        let others: Vec<&str> = OTHERS.split_ascii_whitespace().collect();
        let deciding = DECIDING.iter().map(|field| field.name);
        let modelled = [
            "defaultEndpointToHostAction",
            "failsafeInboundHostPorts",
            "failsafeOutboundHostPorts",
        ];
        let all: Vec<&str> = others.into_iter().chain(deciding).chain(modelled).collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
