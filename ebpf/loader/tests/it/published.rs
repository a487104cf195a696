//! Ports of the host that lead to pods, with tables as the compiler makes them: judged as forwarded on the way in, known by
//! what is on the wire on the way out, and the host's own again when they lead nowhere.

use api::host_ports::{HostPort, Transport};
use ebpf_loader::{Attachment, Datapath, EndpointLink};
use policies_compiler::{CalicoObject, ClusterView, HostEndpointIds, PodView, compile};
use policies_ir::tables::{Direction, EndpointId, Verdict};
use serde_json::{Value, json};

use crate::{
    frames::{ACK, Ends, ICMP, SYN, TCP, UDP, frame, icmp_error, packet_of, tcp, udp},
    host::{ALLOW, CLIENT, DENY, EGRESS, FORWARD, HOST, INGRESS, LOCAL, endpoint},
    lab::{LOOPBACK, Lab, POD_MAC, attached_both_ways, ip},
    link::run,
};

const POD: EndpointId = EndpointId(1);
/// Another address of the host.
const SECOND: &str = "192.0.2.2";
const HOST_V6: &str = "2001:db8::1";
const CLIENT_V6: &str = "2001:db8:1::7";

/// A host that is closed but for its failsafe ports, at the loopback of the test's network namespace, and a pod on it.
struct Published {
    lab: Lab,
    pod: EndpointLink,
    view: ClusterView,
}

impl Published {
    fn new(attachment: Attachment) -> Self {
        let mut lab = Lab::attached(attachment);
        run("ip link add palhost type veth peer name eth0");
        let pod = EndpointLink {
            id: POD,
            ifindex: nix::net::if_::if_nametoindex("palhost").expect("the host side"),
            addresses: vec![ip("10.7.0.2"), ip("fd07::2")],
            mac: POD_MAC,
        };
        lab.kernel().attach(&pod).expect("attach");
        let web = PodView {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            node: "here".to_owned(),
            addresses: pod.addresses.iter().copied().collect(),
            endpoint: Some(POD),
            ..PodView::default()
        };
        let ids = HostEndpointIds {
            local: LOCAL,
            forwarded: FORWARD,
            untracked: EndpointId(102),
        };
        let uplink = json!({"metadata": {"name": "uplink", "labels": {"edge": ""}}, "spec": {"node": "here", "interfaceName": "lo"}});
        let view = ClusterView {
            pods: vec![web],
            node: "here".to_owned(),
            host_addresses: [HOST, SECOND, HOST_V6].map(ip).into(),
            host_endpoints: [("uplink".to_owned(), ids)].into(),
            calico: vec![CalicoObject::HostEndpoint(
                serde_json::from_value(uplink).expect("a host endpoint"),
            )],
            ..ClusterView::default()
        };
        let link = ebpf_loader::HostLink {
            ifindex: LOOPBACK,
            addresses: [HOST, SECOND, HOST_V6]
                .map(|address| (ip(address), endpoint(LOCAL)))
                .into(),
            forward: Some(endpoint(FORWARD)),
        };
        lab.kernel().attach_host(&link).expect("attach");
        let mut host = Self { lab, pod, view };
        host.lead(&[]);
        host
    }

    /// From now on these ports lead to port 80 of the pod.
    fn lead(&mut self, ports: &[(Transport, Option<&str>, u16)]) {
        let port = |(protocol, host_ip, port): &(Transport, Option<&str>, u16)| HostPort {
            protocol: *protocol,
            host_ip: host_ip.map(ip),
            port: *port,
            container_port: 80,
        };
        self.view.pods[0].host_ports = ports.iter().map(port).collect();
        self.write();
    }

    /// From now on this is the one policy of what the host forwards, and may be asked first.
    fn policy(&mut self, flags: &Value, rules: &Value) {
        let mut spec =
            json!({"selector": "has(edge)", "applyOnForward": true, "types": ["Ingress"], "ingress": rules});
        spec.as_object_mut()
            .expect("an object")
            .extend(flags.as_object().expect("flags").clone());
        let policy = json!({"metadata": {"name": "p"}, "spec": spec});
        self.view.calico.truncate(1);
        self.view.calico.push(CalicoObject::GlobalNetworkPolicy(
            serde_json::from_value(policy).expect("a policy"),
        ));
        self.write();
    }

    fn write(&mut self) {
        self.lab.kernel().sync(&compile(&self.view).tables).expect("sync");
        while self.lab.record().is_some() {}
    }

    /// One comes from outside to an address of the host.
    fn comes(&mut self, host: &str, protocol: u8, payload: &[u8]) -> Verdict {
        let client = if ip(host).is_ipv4() { CLIENT } else { CLIENT_V6 };
        self.run(INGRESS, 0, &frame(Ends::new(client, host), protocol, payload))
    }

    /// The pod's answer leaves, with the host's address.
    fn answers(&mut self, host: &str, protocol: u8, payload: &[u8]) -> Verdict {
        let client = if ip(host).is_ipv4() { CLIENT } else { CLIENT_V6 };
        self.run(
            EGRESS,
            self.pod.ifindex,
            &frame(Ends::new(host, client), protocol, payload),
        )
    }

    fn run(&mut self, direction: Direction, came_by: u32, frame: &[u8]) -> Verdict {
        self.lab
            .kernel()
            .run_host_frame(direction, LOOPBACK, came_by, frame)
            .expect("run the program")
    }
}

const TCP_8080: (Transport, Option<&str>, u16) = (Transport::Tcp, None, 8080);

attached_both_ways! {
    fn a_port_that_leads_to_a_pod_is_forwarded_and_its_answers_are_known(attachment) {
        let mut host = Published::new(attachment);
        let opens = tcp(1000, 8080, SYN);
        assert_eq!(host.comes(HOST, TCP, &opens), DENY, "the host's own, and closed");
        host.lead(&[TCP_8080, (Transport::Udp, None, 8053)]);
        for address in [HOST, SECOND, HOST_V6] {
            assert_eq!(host.comes(address, TCP, &opens), ALLOW, "{address}");
            assert_eq!(host.answers(address, TCP, &tcp(8080, 1000, SYN | ACK)), ALLOW, "{address}");
            assert_eq!(host.comes(address, TCP, &tcp(1000, 8080, ACK)), ALLOW);
            assert_eq!(host.comes(address, TCP, &tcp(1000, 8081, SYN)), DENY);
            assert_eq!(host.comes(address, UDP, &udp(1000, 8053)), ALLOW);
            assert_eq!(host.answers(address, UDP, &udp(8053, 1000)), ALLOW);
        }
        let quoted = packet_of(&frame(Ends::new(HOST, CLIENT), TCP, &tcp(8080, 1000, ACK))).to_vec();
        assert_eq!(host.comes(HOST, ICMP, &icmp_error(3, 1, &quoted)), ALLOW, "an error about it");
    }
}

attached_both_ways! {
    fn policy_sees_the_port_on_the_wire_first_and_then_the_pods(attachment) {
        let mut host = Published::new(attachment);
        host.lead(&[TCP_8080, (Transport::Tcp, None, 22)]);
        let about = |action: &str, port: u16| json!([{"action": action, "protocol": "TCP", "destination": {"ports": [port]}}]);
        let to = |host: &mut Published, port: u16, from: u16| host.comes(HOST, TCP, &tcp(from, port, SYN));
        for (from, flags, rules, verdicts) in [
            (1001, json!({}), about("Deny", 80), [DENY, DENY]),
            (1002, json!({}), about("Allow", 8080), [DENY, DENY]),
            (1003, json!({}), json!([{"action": "Allow", "destination": {"selector": "app == 'web'", "ports": [80]}, "protocol": "TCP"}]), [ALLOW, ALLOW]),
            (1004, json!({"preDNAT": true}), about("Deny", 8080), [DENY, ALLOW]),
            (1005, json!({"preDNAT": true}), about("Deny", 80), [ALLOW, ALLOW]),
            (1006, json!({"preDNAT": true}), about("Deny", 22), [ALLOW, DENY]),
        ] {
            host.policy(&flags, &rules);
            let found = [to(&mut host, 8080, from), to(&mut host, 22, from)];
            assert_eq!(found, verdicts, "{flags} {rules}");
        }
    }
}

attached_both_ways! {
    fn a_flow_is_judged_again_by_where_its_port_leads(attachment) {
        let mut host = Published::new(attachment);
        host.lead(&[TCP_8080]);
        let (opens, answer, goes_on) = (tcp(1000, 8080, SYN), tcp(8080, 1000, SYN | ACK), tcp(1000, 8080, ACK));
        let establish = |host: &mut Published| {
            assert_eq!(host.comes(HOST, TCP, &opens), ALLOW);
            assert_eq!(host.answers(HOST, TCP, &answer), ALLOW);
            assert_eq!(host.comes(HOST, TCP, &goes_on), ALLOW);
        };
        establish(&mut host);
        // A change that says the same of the pod.
        host.policy(&json!({}), &json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]));
        assert_eq!(host.comes(HOST, TCP, &goes_on), ALLOW);
        assert_eq!(host.answers(HOST, TCP, &tcp(8080, 1000, ACK)), ALLOW);
        // One that does not, though it allows the port on the wire.
        host.policy(&json!({}), &json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}]));
        assert_eq!(host.answers(HOST, TCP, &tcp(8080, 1000, ACK)), DENY);
        assert_eq!(host.comes(HOST, TCP, &goes_on), DENY);

        host.policy(&json!({}), &json!([{"action": "Allow"}]));
        establish(&mut host);
        // A restarted agent finds it all in the kernel.
        host.lab.restart();
        assert_eq!(host.comes(HOST, TCP, &goes_on), ALLOW);
        // It leads nowhere any more: what is left of the flow is the host's own, which is closed.
        host.view.calico.truncate(1);
        host.lead(&[]);
        assert_eq!(host.answers(HOST, TCP, &tcp(8080, 1000, ACK)), DENY);
        assert_eq!(host.comes(HOST, TCP, &goes_on), DENY);
        assert_eq!(host.comes(HOST, TCP, &opens), DENY);
    }
}

attached_both_ways! {
    fn a_port_of_one_address_is_the_hosts_own_at_the_others(attachment) {
        let mut host = Published::new(attachment);
        host.lead(&[(Transport::Tcp, Some(SECOND), 8080), (Transport::Tcp, Some(HOST_V6), 8081)]);
        for (address, port, verdict) in [
            (SECOND, 8080, ALLOW),
            (HOST, 8080, DENY),
            (HOST_V6, 8080, DENY),
            (SECOND, 8081, DENY),
            (HOST_V6, 8081, ALLOW),
            (HOST, 22, ALLOW),
            (HOST_V6, 22, ALLOW),
        ] {
            assert_eq!(host.comes(address, TCP, &tcp(1000, port, SYN)), verdict, "{address} {port}");
        }
        assert_eq!(host.answers(SECOND, TCP, &tcp(8080, 1000, SYN | ACK)), ALLOW);
        assert_eq!(host.comes(SECOND, TCP, &tcp(1000, 8080, ACK)), ALLOW);
    }
}
