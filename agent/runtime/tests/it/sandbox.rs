//! What is told of each layer, and what a profile takes away, from inside.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agent_runtime::{ContainerConfig, Resources, RuntimeError};
use agent_sandbox::{
    Action, CallRule, Enforcement, FileLimits, Layer, Profile, Report, Scopes, SyscallPolicy, SyscallSet,
    Tcp, TcpPorts, Verdict, call_number,
    object::{self, Surroundings},
};

use crate::{Stage, wait_for};

const ALL: [Layer; 7] = [
    Layer::Seccomp,
    Layer::Landlock,
    Layer::NoNewPrivileges,
    Layer::Capabilities,
    Layer::UserNamespace,
    Layer::Namespaces,
    Layer::Cgroup,
];

impl Stage {
    async fn report(&self, name: &str) -> Report {
        let status = self.runtime.status(&self.pod.uid).await.expect("a status");
        status.container(name).expect("it was started").sandbox.clone()
    }
}

/// Also of a program that has ended before anybody could look, and of one that may ask for nothing but its end.
#[tokio::test(flavor = "multi_thread")]
async fn each_layer_is_seen_before_the_program_runs() {
    let stage = Stage::new("seen").await;
    let short = ContainerConfig {
        resources: Resources {
            memory_bytes: Some(64 << 20),
            pids: Some(50),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            ..Resources::default()
        },
        ..stage.container("short", &["true"])
    };
    let (exit, _) = stage.run(&short).await;
    assert_eq!(exit.code, 0);
    let number = |name| call_number(name).expect("a call");
    let mute = SyscallPolicy {
        calls: ["execve", "exit_group", "exit"]
            .map(|name| (number(name), CallRule::always(Action::Allow)))
            .into(),
        default: Action::KillProcess,
        newest_known: number("execve"),
        newer: Action::KillProcess,
    };
    let mute = ContainerConfig {
        profile: Profile {
            syscalls: SyscallSet::Policy(mute),
            ..Profile::baseline()
        },
        ..stage.container("mute", &["true"])
    };
    let (exit, _) = stage.run(&mute).await;
    assert_eq!(exit.signal, Some(31), "its first call kills it: {exit:?}");
    for name in ["short", "mute"] {
        let report = stage.report(name).await;
        for layer in ALL {
            let finding = report
                .0
                .get(&layer)
                .unwrap_or_else(|| panic!("{name}: {layer} was not looked at"));
            assert_eq!(
                finding.verdict,
                Verdict::Enforced,
                "{name}: {layer}: {}",
                finding.detail
            );
        }
        assert_eq!(report.0.len(), ALL.len(), "{report}");
    }
    stage.end().await;
}

/// In init and in sessions: a profile need leave nothing but `execve` for a program to start. What it says first needs more, but
/// nothing about signals.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_refuses_calls_about_signals_starts_its_program() {
    let stage = Stage::new("signal-calls").await;
    let shut = |refusal| {
        let mut policy = SyscallSet::Baseline.policy();
        for name in ["rt_sigprocmask", "rt_sigaction"] {
            let number = call_number(name).expect("a call");
            policy.calls.insert(number, CallRule::always(refusal));
        }
        Profile {
            syscalls: SyscallSet::Policy(policy),
            ..Profile::baseline()
        }
    };
    for (name, refusal) in [("errno", Action::Errno(1)), ("kill", Action::KillProcess)] {
        let config = ContainerConfig {
            profile: shut(refusal),
            ..stage.container(name, &["echo", "ran"])
        };
        let (exit, output) = stage.run(&config).await;
        assert_eq!((exit.code, output.as_str()), (0, "ran\n"), "{name}: {exit:?}");
        let lasting = ContainerConfig {
            profile: shut(refusal),
            ..stage.container(&format!("{name}-on"), &["sleep", "1000"])
        };
        let started = stage.runtime.start_container(&stage.pod.uid, &lasting).await;
        started.expect("starts");
        let argv = ["cat", "/proc/self/status"].map(String::from);
        let session = stage
            .runtime
            .exec(&stage.pod.uid, &lasting.name, &argv, crate::patience());
        let session = session.await.expect("runs");
        let status = String::from_utf8_lossy(&session.stdout).into_owned();
        let mask = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        };
        assert_eq!(mask("SigBlk:"), Some(0), "{name}: {status}");
        let is_pipe_ignored = mask("SigIgn:").map(|mask| (mask >> (libc::SIGPIPE - 1)) & 1);
        assert_eq!(is_pipe_ignored, Some(0), "{name}: {status}");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_lacks_keeps_a_container_from_starting_or_is_told() {
    let stage = Stage::new("lacks").await;
    let with = |name, enforcement| ContainerConfig {
        profile: Profile {
            minimum_landlock: 99,
            enforcement,
            ..Profile::baseline()
        },
        ..stage.container(name, &["sh", "-c", "echo ran"])
    };
    for (name, enforcement) in [
        ("required", Enforcement::Required),
        ("floor", Enforcement::BestEffort { floor: 99 }),
    ] {
        let refused = stage
            .runtime
            .start_container(&stage.pod.uid, &with(name, enforcement))
            .await
            .expect_err("the kernel has no such interface");
        let RuntimeError::Refused { reason, layer } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(layer, Some(Layer::Landlock));
        assert!(reason.contains("Landlock interface 99"), "{reason}");
        assert_eq!(stage.output(name), "", "it did not run");
    }
    let (_, output) = stage
        .run(&with("effort", Enforcement::BestEffort { floor: 5 }))
        .await;
    assert_eq!(output, "ran\n");
    let report = stage.report("effort").await;
    let landlock = &report.0[&Layer::Landlock];
    assert_eq!(landlock.verdict, Verdict::Partial);
    assert!(
        landlock.detail.contains("Landlock interface 99"),
        "{}",
        landlock.detail
    );
    assert_eq!(report.worst(), Some(Verdict::Partial));
    assert_eq!(report.lacking().count(), 1, "the others are in force: {report}");
    stage.end().await;
}

/// In init and in sessions alike, and never more than the preset: the lists name what the image's rule refuses too.
#[tokio::test(flavor = "multi_thread")]
async fn lists_of_paths_take_away_what_they_do_not_name() {
    let stage = Stage::new("lists").await;
    let paths = |list: &[&str]| Some(list.iter().map(Into::into).collect());
    let limits = FileLimits {
        read: paths(&["/bin", "/etc", "/tmp", "/proc", "/missing"]),
        write: paths(&["/tmp", "/bin", "/dev/null"]),
        execute: paths(&["/bin/busybox", "/bin/sh", "/tmp"]),
        ioctl: paths(&[]),
    };
    let script = "echo 1 > /tmp/a && cat /tmp/a; mkdir /tmp/d && mv /tmp/a /tmp/d/b && echo moved; rm -r /tmp/d; \
        cat /etc/note > /dev/null && echo read; \
        ls /app; echo x > /etc/new; /app/tool; echo x > /bin/evil; \
        cp /bin/busybox /tmp/dropped; /tmp/dropped true; rm /tmp/dropped; stty -F /dev/null; echo end";
    let wrapped = format!("({script}) 2>&1");
    let config = |name: &str, limits| ContainerConfig {
        profile: Profile {
            limits,
            ..Profile::baseline()
        },
        ..stage.container(name, &["sh", "-c", &format!("{wrapped}; exec sleep 1000")])
    };
    let start = async |config: &ContainerConfig| {
        stage
            .runtime
            .start_container(&stage.pod.uid, config)
            .await
            .expect("starts");
        wait_for(|| stage.output(&config.name).ends_with("end\n"));
        let (_, session) = stage.exec(&config.name, &wrapped).await;
        let init = stage.output(&config.name);
        assert_eq!(init, session, "init and exec differ");
        init
    };
    let before = start(&config("before", FileLimits::default())).await;
    for expected in ["1\nmoved\n", "read\n", "app-runs", "Inappropriate ioctl"] {
        assert!(before.contains(expected), "{expected:?} is not in:\n{before}");
    }
    let limited = start(&config("limited", limits)).await;
    for expected in [
        "1\nmoved\n",
        "read\n",
        "ls: can't open '/app': Permission denied",
        "can't create /etc/new: Permission denied",
        "/app/tool: Permission denied",
        "can't create /bin/evil: Permission denied",
        "/tmp/dropped: Permission denied",
        "/dev/null: Permission denied",
    ] {
        assert!(limited.contains(expected), "{expected:?} is not in:\n{limited}");
    }
    let report = stage.report("limited").await;
    assert!(
        report.0[&Layer::Landlock].detail.contains("rulesets: 2"),
        "{report:?}"
    );
    stage.end().await;
}

/// In init and in sessions alike: what one container's file takes away, the other keeps.
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_one_pod_have_filters_of_their_own() {
    let stage = Stage::new("own-filters").await;
    let around = Surroundings {
        declared: &BTreeSet::new(),
        egress: None,
        capabilities: &[],
        kernel: (6, 12),
        floor: 5,
    };
    let file = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]}"#;
    let mut shut = Profile::baseline();
    object::filter(&mut shut, file, &around).expect("a profile");
    let script = "(mkdir /tmp/made && echo made; unshare -n true; echo end) 2>&1";
    let wrapped = format!("{script}; exec sleep 1000");
    for (name, profile) in [("open", Profile::baseline()), ("shut", shut)] {
        let config = ContainerConfig {
            profile,
            ..stage.container(name, &["sh", "-c", &wrapped])
        };
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        started.expect("starts");
        wait_for(|| stage.output(name).ends_with("end\n"));
    }
    let said = |name: &str| stage.output(name);
    assert!(said("open").starts_with("made\n"), "{}", said("open"));
    assert!(
        said("shut").contains("'/tmp/made': Protocol error"),
        "{}",
        said("shut")
    );
    let (_, session) = stage.exec("shut", script).await;
    assert_eq!(session, said("shut"), "a session is confined otherwise");
    let (code, _) = stage.exec("open", "mkdir /tmp/again").await;
    assert_eq!(code, 0);
    for name in ["open", "shut"] {
        // The file allows all else; the baseline does not.
        assert!(said(name).contains("Operation not permitted"), "{}", said(name));
        assert_eq!(
            stage.report(name).await.worst(),
            Some(Verdict::Enforced),
            "{name}"
        );
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_connections_are_those_of_the_profile() {
    let stage = Stage::new("ports").await;
    let ports = TcpPorts {
        bind: Some(BTreeSet::from([8080])),
        connect: Some(BTreeSet::from([8080, 9090])),
    };
    let script = "(nc -l -p 8080 -w 3 127.0.0.1 & sleep 0; nc -l -p 9090 -w 1 127.0.0.1; \
                  for port in 9090 9091; do nc -w 2 127.0.0.1 $port < /dev/null; done; echo end) 2>&1";
    let config = ContainerConfig {
        profile: Profile {
            tcp: Tcp::Ports(ports.clone()),
            ..Profile::baseline()
        },
        ..stage.container("main", &["sh", "-c", script])
    };
    let (_, output) = stage.run(&config).await;
    assert!(
        output.contains("bind: Permission denied"),
        "port 9090 is bound:\n{output}"
    );
    assert!(
        output.contains("(127.0.0.1): Network is unreachable"),
        "port 9090:\n{output}"
    );
    assert!(
        output.contains("(127.0.0.1): Permission denied"),
        "port 9091:\n{output}"
    );
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    assert_eq!(status.container("main").expect("started").connect, ports.connect);
    stage.end().await;
}

/// A session is a sandbox of its own: with the scope it signals its own processes and not the container's.
#[tokio::test(flavor = "multi_thread")]
async fn signals_stay_in_their_scope() {
    let stage = Stage::new("scope").await;
    for (name, signals) in [("open", false), ("scoped", true)] {
        let config = ContainerConfig {
            profile: Profile {
                scopes: Scopes {
                    signals,
                    abstract_sockets: signals,
                },
                ..Profile::baseline()
            },
            ..stage.container(name, &["sleep", "1000"])
        };
        stage
            .runtime
            .start_container(&stage.pod.uid, &config)
            .await
            .expect("starts");
        let (code, output) = stage.exec(name, "kill -0 $$ && kill -0 1").await;
        assert_eq!(code == 0, !signals, "{name}: {output}");
        if signals {
            assert!(output.contains("Operation not permitted"), "{output}");
        }
        // Whoever stands outside still ends it.
        stage
            .runtime
            .signal(&stage.pod.uid, name, 9)
            .await
            .expect("signals");
        assert_eq!(stage.exit(name).await.signal, Some(9));
    }
    stage.end().await;
}

/// Each layer has few enough, and then one has too many itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_layers_with_too_many_programs_starts_with_its_own_and_says_so() {
    let stage = Stage::new("programs").await;
    let program = |path: &Path| {
        fs::write(path, "#!/bin/sh\necho own\n").expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    };
    let base = stage.directory.path();
    fs::create_dir_all(base.join("own/zz")).expect("mkdir");
    program(&base.join("own/zz/run"));
    let deep = vec!["d".repeat(200); 5].join("/");
    for (name, below, each) in [("short", "a", 4200), ("long", deep.as_str(), 3000)] {
        let mut config = stage.container(name, &["/zz/run"]);
        for layer in ["1", "2"] {
            let root = base.join(format!("{name}{layer}"));
            let directory = root.join(below);
            fs::create_dir_all(&directory).expect("mkdir");
            let first = directory.join(format!("{layer}-0"));
            program(&first);
            for number in 1..each {
                fs::hard_link(&first, directory.join(format!("{layer}-{number}"))).expect("link");
            }
            config.layers.push(root);
        }
        config.layers.push(base.join("own"));
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        assert!(started.expect("starts").lacks_executables, "{name}");
        assert_eq!(stage.exit(name).await.code, 0, "{name}");
        assert_eq!(stage.output(name), "own\n");
    }
    let (whole, first) = (base.join("whole"), base.join("whole/a/0"));
    fs::create_dir_all(whole.join("a")).expect("mkdir");
    fs::create_dir_all(whole.join("zz")).expect("mkdir");
    program(&first);
    for number in 1..=agent_sandbox::MAX_EXECUTABLES {
        fs::hard_link(&first, whole.join(format!("a/{number}"))).expect("link");
    }
    program(&whole.join("zz/run"));
    fs::write(whole.join("zz/data"), "#!/bin/sh\necho data\n").expect("write");
    for (name, argv, own) in [
        ("absolute", "/zz/run", true),
        ("path", "run", true),
        ("data", "/zz/data", false),
    ] {
        let mut config = stage.container(name, &[argv]);
        config.env = vec![("PATH".into(), "/none:/zz".into())];
        config.layers.push(whole.clone());
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        if own {
            assert!(started.expect("starts").lacks_executables, "{name}");
            assert_eq!(stage.exit(name).await.code, 0, "{name}");
            assert_eq!(stage.output(name), "own\n");
        } else {
            let refused = started.expect_err("no executable file of the image");
            assert!(refused.to_string().contains("Permission denied"), "{refused}");
        }
    }
    let few = stage.container("few", &["/app/tool"]);
    let started = stage.runtime.start_container(&stage.pod.uid, &few).await;
    assert!(!started.expect("starts").lacks_executables);
    stage.exit("few").await;
    stage.end().await;
}
