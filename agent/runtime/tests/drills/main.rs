//! Escape drills: every attempt of the [`corpus`] for real, from inside a container, with the layer that
//! stops it shown and not only claimed. Needs root, as the agent does.
//!
//! The attempts are made by a helper (`examples/drill`) several times: as a container's first process and in
//! an exec session, where they must be stopped; under the same filter with other error numbers, which shows
//! what the filter answers; and in the namespaces of a container without the layers that a process puts on
//! itself (seccomp, Landlock), then with all capabilities there, then without no_new_privs. A layer is
//! named if taking it away is what changes the answer; what only a namespace hides must be there on the
//! other side.

#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod corpus;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use agent_runtime::{ContainerConfig, ContainerState, Mount, PodStatus, Resources};
use agent_sandbox::{Action, FileLimits, Profile, Scopes, SyscallPolicy, SyscallSet, TcpPorts};

use crate::corpus::{CORPUS, Drill, Layer, PROFILE, STRICT};
use crate::stage::{Stage, helper};

const EPERM: &str = "errno 1";
const ENOENT: &str = "errno 2";
const ESRCH: &str = "errno 3";
const EACCES: &str = "errno 13";
const EINVAL: &str = "errno 22";
const EROFS: &str = "errno 30";
const ENOSYS: &str = "errno 38";
const EXDEV: &str = "errno 18";
const EPROTONOSUPPORT: &str = "errno 93";
const ENETUNREACH: &str = "errno 101";
const ECONNREFUSED: &str = "errno 111";
const SIGSYS: &str = "signal 31";
const DONE: &str = "done";
const NOTHING: &str = "nothing";

/// No system call answers with this number by itself.
const MARK: u16 = 4000;
const MARKED: &str = "errno 4000";

/// The answers from one place, by drill.
type Answers = BTreeMap<String, String>;

/// What all places answered to one drill.
#[derive(Debug)]
struct Evidence<'a> {
    /// In a container.
    contained: &'a str,
    /// In one whose filter answers with [`MARK`].
    marked: &'a str,
    /// Without seccomp and Landlock.
    bare: &'a str,
    /// As `bare`, with all capabilities of the pod's user namespace.
    capable: &'a str,
    /// As `bare`, without no_new_privs.
    gaining: &'a str,
    /// On the host or in the other pod; for what is hidden, or may be absent from this kernel.
    outside: Option<&'a str>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_stopped_by_the_layer_that_is_named() {
    let stage = Stage::new(&["attacker", "neighbour"]).await;
    let targets = Targets::new(&stage).await;
    let facts = &targets.facts;

    let everything = ["/bin/drill", "run"];
    let (_, contained) = stage.run(&stage.container("contained", &everything, facts)).await;
    let contained = answers(&contained);
    let sleeper = stage.container("session", &["sleep", "1000"], facts);
    stage.start(0, &sleeper).await;
    let session = answers(&stage.exec("session", &everything).await);
    let differ = |drill: &&String| session.get(*drill) != contained.get(*drill);
    let different: Vec<_> = contained.keys().filter(differ).collect();
    assert!(
        different.is_empty(),
        "an exec session is confined otherwise: {different:?} of {session:?}"
    );

    let marked = |name: &str, argv: &[&str], refusals: &[i32]| ContainerConfig {
        profile: marked_profile(&Profile::baseline(), refusals),
        ..stage.container(name, argv, facts)
    };
    let (_, output) = stage.run(&marked("marked", &everything, &[libc::EPERM])).await;
    let mut with_marks = answers(&output);
    // The C library lives with ENOSYS and no other answer to `clone3`: only who asks directly can see it marked.
    let unknown = ["/bin/drill", "run", "clone3", "unknown-call"];
    let (_, output) = stage
        .run(&marked("unknown", &unknown, &[libc::EPERM, libc::ENOSYS]))
        .await;
    with_marks.extend(answers(&output));

    let capabilities = bits_of(&contained_status(
        &stage.exec("session", &["cat", "/proc/self/status"]).await,
    ));
    let mut places = Vec::new();
    for (name, keep, whether) in [
        ("bare", capabilities.as_str(), "no-new-privs"),
        ("capable", "ffffffffffffffff", "no-new-privs"),
        ("gaining", capabilities.as_str(), "gain"),
    ] {
        // One each: some attempts succeed, and leave the container other than it was.
        stage
            .start(0, &stage.container(name, &["sleep", "1000"], facts))
            .await;
        let pid = stage.pid(0, name).await.to_string();
        places.push(answers(&helper(&["enter", &pid, keep, whether], facts)));
    }
    let outside = targets.seen_from_outside(&stage).await;

    let mut wrong = String::new();
    let mut tried = 0;
    for drill in CORPUS.iter().flat_map(|family| family.drills) {
        if by_itself(drill.stopped_by) {
            continue;
        }
        let answer = |place: &'static str, answers: &'_ Answers| {
            answers
                .get(drill.name)
                .unwrap_or_else(|| panic!("{}: no answer {place}", drill.name))
                .clone()
        };
        let (contained, marked) = (
            answer("in a container", &contained),
            answer("with marks", &with_marks),
        );
        let [bare, capable, gaining] = [0, 1, 2].map(|place| answer("in the namespaces", &places[place]));
        let evidence = Evidence {
            contained: &contained,
            marked: &marked,
            bare: &bare,
            capable: &capable,
            gaining: &gaining,
            outside: outside.get(drill.name).map(String::as_str),
        };
        tried += 1;
        if let Err(reason) = judge(drill, &evidence) {
            writeln!(wrong, "{}: {reason}\n    {evidence:?}", drill.name).expect("writes");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(
        tried,
        contained.len(),
        "each attempt of the helper is in the corpus: {contained:#?}"
    );
    assert!(tried >= 100, "{tried}");
    stage.end().await;
}

/// Whether the evidence shows what the corpus says.
fn judge(drill: &Drill, evidence: &Evidence<'_>) -> Result<(), String> {
    let Evidence {
        contained,
        marked,
        bare,
        capable,
        gaining,
        outside,
    } = evidence;
    if *contained == DONE {
        return Err("it succeeded".into());
    }
    // Not a part of this kernel: there is nothing to stop.
    if *contained == ENOENT && outside.is_some_and(|outside| outside == ENOENT) {
        return Ok(());
    }
    let everywhere = |answers: &[&str]| {
        answers.contains(contained) && [marked, bare, capable].iter().all(|place| *place == contained)
    };
    let permitted = |answer: &str| ![EPERM, EACCES].contains(&answer);
    // The filter comes first of all, and refuses x32 calls with a number of its own.
    let by_seccomp = [MARKED, SIGSYS].contains(marked) || (*marked == EPERM && *bare == ENOSYS);
    let by_landlock = [EACCES, EXDEV].contains(marked) && bare != marked;
    let hidden = |answers: &[&str]| everywhere(answers) && *outside == Some(DONE);
    let shown = match drill.stopped_by {
        Layer::Seccomp => by_seccomp,
        Layer::Landlock => by_landlock,
        Layer::Capabilities => !permitted(contained) && bare == contained && permitted(capable),
        Layer::NoNewPrivileges => (bare == contained && *gaining == DONE) || everywhere(&[EINVAL]),
        Layer::UserNamespace => everywhere(&[EPERM, EACCES, EINVAL]),
        Layer::PidNamespace => hidden(&[ESRCH, ENOENT]),
        Layer::NetworkNamespace => hidden(&[ECONNREFUSED, ENETUNREACH]),
        Layer::IpcNamespace => hidden(&[ENOENT]),
        Layer::MountNamespace => everywhere(&[ENOENT]) && outside.is_none_or(|outside| outside == DONE),
        Layer::ReadOnlyMount => everywhere(&[EROFS]),
        Layer::NoExecMount | Layer::SealedMemory => everywhere(&[EACCES]),
        Layer::MaskedPath => everywhere(&[NOTHING]),
        Layer::CgroupFiles => everywhere(&[ENOENT, EROFS, EACCES]) || by_landlock,
        _ => return Err("this layer has a test of its own".into()),
    };
    if !shown {
        return Err(format!("this is not what {:?} does", drill.stopped_by));
    }
    let behind = match drill.behind {
        None => true,
        Some(Layer::Capabilities) => !permitted(bare) && permitted(capable),
        Some(Layer::UserNamespace) => !permitted(capable) || *capable == EINVAL,
        Some(_) => false,
    };
    if behind {
        Ok(())
    } else {
        Err(format!("{:?} is not behind it", drill.behind))
    }
}

/// Layers that are shown by the tests below.
fn by_itself(layer: Layer) -> bool {
    use Layer::{LogRotation, MemoryLimit, OwnAccount, PidsLimit, RootedPaths, TmpfsFiles, TmpfsSize};
    [
        LogRotation,
        MemoryLimit,
        OwnAccount,
        PidsLimit,
        RootedPaths,
        TmpfsFiles,
        TmpfsSize,
    ]
    .contains(&layer)
}

/// A profile with another error number for these refusals, otherwise the same.
fn marked_profile(profile: &Profile, refusals: &[i32]) -> Profile {
    let mut policy: SyscallPolicy = profile.syscall_policy();
    let mark = |action: &mut Action| {
        if let Action::Errno(number) = action
            && refusals.contains(&i32::from(*number))
        {
            *number = MARK;
        }
    };
    for rule in policy.calls.values_mut() {
        mark(&mut rule.otherwise);
        for alternative in &mut rule.alternatives {
            mark(&mut alternative.action);
        }
    }
    mark(&mut policy.default);
    mark(&mut policy.newer);
    Profile {
        syscalls: SyscallSet::Policy(policy),
        ..profile.clone()
    }
}

fn answers(output: &str) -> Answers {
    let pair = |line: &str| {
        line.split_once('=')
            .map(|(name, answer)| (name.to_owned(), answer.to_owned()))
    };
    let answers: Answers = output.lines().filter_map(pair).collect();
    assert_eq!(answers.len(), output.lines().count(), "{output}");
    answers
}

fn contained_status(status: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        line.split_once(":\t")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    status.lines().filter_map(pair).collect()
}

fn bits_of(status: &BTreeMap<String, String>) -> String {
    assert_eq!(
        (status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()),
        ("2", "1")
    );
    status["CapEff"].clone()
}

/// What the attempts aim at, on the host and in the other pod.
struct Targets {
    facts: BTreeMap<String, String>,
    _socket: std::os::unix::net::UnixListener,
    _tcp: std::net::TcpListener,
    shared_memory: i32,
}

impl Targets {
    async fn new(stage: &Stage) -> Self {
        use std::os::linux::net::SocketAddrExt;
        let own = std::process::id();
        let pod_socket = format!("palisade-drill-pod-{own}-{}", stage.number);
        let victim = stage.container("victim", &["/bin/drill", "listen", &pod_socket], &BTreeMap::new());
        stage.start(1, &victim).await;
        let host_socket = format!("palisade-drill-host-{own}-{}", stage.number);
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&host_socket).expect("a name");
        let socket = std::os::unix::net::UnixListener::bind_addr(&address).expect("binds");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let file = stage.directory.path().join("secret");
        fs::write(&file, "of the host").expect("writes");
        let key = i32::try_from(own).expect("a small number") + 8_000_000 * stage.number;
        // SAFETY: numbers only.
        let shared_memory = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o600) };
        assert!(shared_memory >= 0, "shared memory");
        let facts = [
            ("HOST_FILE", file.to_string_lossy().into_owned()),
            ("HOST_PID", own.to_string()),
            ("POD_PID", stage.pid(1, "victim").await.to_string()),
            ("HOST_SOCKET", host_socket),
            ("POD_SOCKET", pod_socket),
            ("HOST_PORT", tcp.local_addr().expect("bound").port().to_string()),
            ("HOST_SHM", key.to_string()),
        ];
        Self {
            facts: facts.map(|(name, value)| (name.to_owned(), value)).into(),
            _socket: socket,
            _tcp: tcp,
            shared_memory,
        }
    }

    /// The answers where the targets are, and where a part of the kernel would be if there is one.
    async fn seen_from_outside(&self, stage: &Stage) -> Answers {
        let on_the_host = [
            "run",
            "host-file",
            "signal-host",
            "signal-pod",
            "pidfd-host",
            "memory-of-pod",
            "environment-of-host",
            "abstract-socket-host",
            "tcp-host-loopback",
            "shared-memory-host",
            "proc-kcore",
            "proc-modprobe",
            "proc-sysrq",
            "proc-timer-list",
            "sys-uevent-helper",
        ];
        let mut answers = answers(&helper(&on_the_host, &self.facts));
        let pid = stage.pid(1, "victim").await.to_string();
        let beside = helper(
            &["enter", &pid, "0", "no-new-privs", "abstract-socket-pod"],
            &self.facts,
        );
        answers.extend(self::answers(&beside));
        let file = answers["host-file"].clone();
        for other in ["symlink", "dotdot", "proc-root", "chroot"] {
            answers.insert(format!("host-file-{other}"), file.clone());
        }
        answers
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        // SAFETY: the segment is this test's; nothing is read or written for this command.
        unsafe { libc::shmctl(self.shared_memory, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// What `strict` adds, beside the baseline, which lets it happen; and nothing of the baseline is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_never_code_under_strict() {
    let stage = Stage::new(&["strict", "neighbour"]).await;
    let targets = Targets::new(&stage).await;
    let port = BTreeSet::from([8080]);
    let profile = Profile::strict(TcpPorts {
        bind: Some(port.clone()),
        connect: Some(port),
    });
    let mut argv = vec![
        "/bin/drill",
        "run",
        "bind-declared",
        "connect-declared",
        "listen-unbound",
        "raw-ping",
    ];
    argv.extend(STRICT.drills.iter().map(|drill| drill.name));
    let container = |name: &str, argv: &[&str], profile: Profile| {
        let mut config = stage.container(name, argv, &targets.facts);
        config.capabilities.push("CAP_NET_RAW".into());
        ContainerConfig { profile, ..config }
    };
    let (_, output) = stage
        .run(&container("baseline", &argv, Profile::baseline()))
        .await;
    let baseline = answers(&output);
    let (_, output) = stage.run(&container("strict", &argv, profile.clone())).await;
    let strict = answers(&output);
    let refusals = [
        libc::EPERM,
        libc::EPROTONOSUPPORT,
        libc::EOPNOTSUPP,
        libc::ENOENT,
        libc::ENOPROTOOPT,
    ];
    let marked = marked_profile(&profile, &refusals);
    let (_, output) = stage.run(&container("marked", &argv, marked)).await;
    let mut with_marks = answers(&output);
    let unknown = ["/bin/drill", "run", "map-anonymous-file"];
    let marked = marked_profile(&profile, &[libc::EPERM, libc::ENOSYS]);
    let (_, output) = stage.run(&container("unknown", &unknown, marked)).await;
    with_marks.extend(answers(&output));

    assert_eq!(strict["bind-declared"], DONE);
    assert_ne!(strict["connect-declared"], EACCES);
    // A gap that THREATS.md states. A kernel that closes it makes this a drill.
    assert_eq!(strict["listen-unbound"], DONE);
    // What pings is no way to a port.
    assert_eq!(strict["raw-ping"], DONE);
    // As on a kernel without Multipath TCP: what asks for it falls back on TCP.
    assert_eq!(strict["bind-multipath"], EPROTONOSUPPORT);
    let mut wrong = String::new();
    for drill in STRICT.drills {
        let [open, stopped, marked] =
            [&baseline, &strict, &with_marks].map(|answers| answers[drill.name].as_str());
        // Nobody listens there, and the kernel may not have the protocol.
        let was_open = match drill.name {
            "connect-sctp" => [DONE, EPROTONOSUPPORT].contains(&open),
            "become-other-protocol" => [DONE, ENOENT].contains(&open),
            // The host's device, on a mount that may be noexec.
            "map-shared-code-zero" => [DONE, EPERM].contains(&open),
            name if name.starts_with("connect-") => [ECONNREFUSED, ENETUNREACH].contains(&open),
            _ => open == DONE,
        };
        let shown = match drill.stopped_by {
            Layer::Seccomp => marked == MARKED,
            Layer::Landlock => stopped == EACCES && marked == EACCES,
            Layer::NoExecMount => {
                [EPERM, "the loader could not map it"].contains(&stopped) && marked == stopped
            }
            Layer::ReadOnlyMount => stopped == EROFS,
            _ => false,
        };
        if !was_open || !shown || stopped == DONE {
            writeln!(wrong, "{}: {open}, strict {stopped}, marked {marked}", drill.name).expect("writes");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");

    let sleeper = container("session", &["sleep", "1000"], profile.clone());
    stage.start(0, &sleeper).await;
    assert_eq!(
        answers(&stage.exec("session", &argv).await),
        strict,
        "an exec session is as strict"
    );
    let (_, output) = stage
        .run(&container("all", &["/bin/drill", "run"], profile))
        .await;
    let all = answers(&output);
    // The capability that stops it elsewhere is there for the drills of raw sockets; what pings is let be.
    let succeeded: Vec<_> = all
        .iter()
        .filter(|(name, answer)| *answer == DONE && *name != "socket-raw")
        .collect();
    assert!(all.len() > 100 && succeeded.is_empty(), "{succeeded:?}");
    stage.end().await;
}

/// What lists and scopes take away, in init and in sessions, and that it is Landlock that does: the filter's answers have
/// another number here.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_listed_is_refused_under_a_profile() {
    let stage = Stage::new(&["listed"]).await;
    let socket = format!("palisade-drill-own-{}", std::process::id());
    let victim = stage.container("victim", &["/bin/drill", "listen", &socket], &BTreeMap::new());
    stage.start(0, &victim).await;
    let facts = BTreeMap::from([("OWN_SOCKET".to_owned(), socket)]);
    let list = |paths: &[&str]| Some(paths.iter().map(Into::into).collect());
    let profile = Profile {
        limits: FileLimits {
            read: list(&["/bin", "/lib", "/lib64", "/data", "/proc"]),
            write: list(&["/data", "/dev/null"]),
            execute: list(&["/bin/drill", "/lib", "/lib64"]),
            ioctl: list(&[]),
        },
        scopes: Scopes::ALL,
        ..marked_profile(&Profile::baseline(), &[libc::EPERM])
    };
    let mut argv = vec!["/bin/drill", "run"];
    argv.extend(PROFILE.drills.iter().map(|drill| drill.name));
    let (_, open) = stage.run(&stage.container("open", &argv, &facts)).await;
    let listed = ContainerConfig {
        profile,
        ..stage.container("listed", &argv, &facts)
    };
    let (_, stopped) = stage.run(&listed).await;
    let (open, stopped) = (answers(&open), answers(&stopped));
    let mut wrong = String::new();
    for drill in PROFILE.drills {
        let [open, stopped] = [&open, &stopped].map(|answers| answers[drill.name].as_str());
        let refused = [EACCES, EPERM];
        if refused.contains(&open) || !refused.contains(&stopped) {
            writeln!(wrong, "{}: {open}, with lists {stopped}", drill.name).expect("writes");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let waits = format!("palisade-drill-waits-{}", std::process::id());
    let sleeper = ContainerConfig {
        name: "session".into(),
        argv: ["/bin/drill", "listen", &waits].map(String::from).to_vec(),
        log_path: stage.log("session"),
        ..listed
    };
    stage.start(0, &sleeper).await;
    assert_eq!(
        answers(&stage.exec("session", &argv).await),
        stopped,
        "a session is as tight"
    );
    stage.end().await;
}

fn limited(stage: &Stage, name: &str, resources: Resources) -> ContainerConfig {
    ContainerConfig {
        resources,
        ..stage.container(name, &["/bin/drill", "run", name], &BTreeMap::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_cannot_be_used_up() {
    let stage = Stage::new(&["greedy"]).await;
    let pids = Resources {
        pids: Some(32),
        ..Resources::default()
    };
    let (_, output) = stage.run(&limited(&stage, "fork-bomb", pids)).await;
    assert_eq!(output, "fork-bomb=errno 11\n");

    let memory = Resources {
        memory_bytes: Some(48 << 20),
        ..Resources::default()
    };
    let (exit, output) = stage.run(&limited(&stage, "memory-bomb", memory)).await;
    assert!(exit.oom_killed, "{exit:?} {output}");
    assert!(!output.contains("done"), "{output}");
    // Without a limit of memory: nothing but the file systems themselves says no.
    for name in ["inode-bomb", "inode-bomb-dev", "fill-shared-memory", "fill-dev"] {
        let (_, output) = stage.run(&limited(&stage, name, Resources::default())).await;
        assert_eq!(output, format!("{name}=errno 28\n"));
        // What it left in shared memory is the pod's.
        stage.exec_in_new("clean", "rm -f /dev/shm/*").await;
    }
    stage.end().await;
}

/// What the agent mounts for an `emptyDir` of `medium: Memory`, with a `sizeLimit` of 8 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_memory_takes_what_it_may() {
    let directory = tempfile::tempdir().expect("a directory");
    // Before there is a pod, as the agent does: a pod's shim has its own view of what is mounted.
    let volume = Mounted::new(directory.path(), 8 << 20);
    let stage = Stage::new(&["memory"]).await;
    for name in ["fill-memory-volume", "inode-bomb-memory-volume"] {
        let mut config = limited(&stage, name, Resources::default());
        config.mounts.push(Mount {
            source: volume.0.clone(),
            target: "/memory".into(),
            read_only: false,
            executable: false,
            sub_path: None,
        });
        let (_, output) = stage.run(&config).await;
        assert_eq!(output, format!("{name}=errno 28\n"));
        let state = rustix::fs::statvfs(&volume.0).expect("a file system");
        let (bytes, files) = (state.f_blocks * state.f_frsize, state.f_files);
        assert_eq!((bytes, files), (8 << 20, 4096));
        let is_by_files = name.starts_with("inode");
        let full = (state.f_bfree == 0, state.f_ffree == 0);
        assert_eq!(full, (!is_by_files, is_by_files), "{name}: of bytes, of files");
        for file in fs::read_dir(&volume.0).expect("lists") {
            fs::remove_file(file.expect("listed").path()).expect("removed");
        }
    }
    stage.end().await;
}

/// A file system in memory, until dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: &Path, bytes: u64) -> Self {
        agent_runtime::tmpfs::mount(path, bytes, 0o777).expect("mounted");
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _best_effort = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// And bounds what all users of a pod have together by what its owner may have.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_counts_by_user_is_counted_for_each_pod() {
    let stage = Stage::new(&["counted", "beside"]).await;
    let data = stage.directory.path().join("data");
    for (all, one, answer) in [
        ("inotify-instances", "inotify-instance", "errno 24"),
        ("queued-signals", "queued-signal", "errno 11"),
    ] {
        let attacker = limited(&stage, all, Resources::default());
        stage.start(0, &attacker).await;
        while fs::symlink_metadata(data.join("all")).is_err() {
            assert_eq!(stage.output(all), "");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let host = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
        let neighbour = limited(&stage, one, Resources::default());
        stage.start(1, &neighbour).await;
        let ended = |status: &PodStatus| {
            let found = &status.container(one)?.state;
            matches!(found, ContainerState::Exited(_)).then_some(())
        };
        stage.until(1, ended).await;
        fs::write(data.join("stop"), "").expect("writes");
        stage.exit(all).await;
        assert_eq!(stage.output(all), format!("{all}={answer}\n"));
        assert_eq!(stage.output(one), format!("{one}=done\n"));
        assert!(host.is_ok(), "{host:?}");
        for file in ["all", "stop"] {
            fs::remove_file(data.join(file)).expect("removes");
        }
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_flood_is_rotated() {
    let stage = Stage::new(&["loud"]).await;
    let config = limited(&stage, "log-flood", Resources::default());
    let bound = config.log_max_bytes * u64::from(config.log_max_files);
    let (exit, _) = stage.run(&config).await;
    assert_eq!(exit.code, 0);
    let files = fs::read_dir(stage.directory.path().join("logs"))
        .expect("lists")
        .flatten();
    let sizes: Vec<u64> = files.map(|file| file.metadata().expect("there").len()).collect();
    let sum: u64 = sizes.iter().sum();
    assert!(
        sizes.len() == 3 && sum > bound / 2 && sum <= bound,
        "{sizes:?}, at most {bound}"
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_images_links_do_not_lead_mounts_to_the_host() {
    let stage = Stage::new(&["links"]).await;
    let host = tempfile::tempdir().expect("a directory");
    fs::write(host.path().join("file"), "of the host").expect("writes");
    let layer = stage.directory.path().join("links");
    fs::create_dir(&layer).expect("mkdir");
    let climb = Path::new(&"../".repeat(40)).join(host.path().strip_prefix("/").expect("absolute"));
    symlink(&climb, layer.join("relative")).expect("symlink");
    symlink(host.path(), layer.join("absolute")).expect("symlink");
    fs::write(stage.directory.path().join("data/note"), "mounted").expect("writes");
    let script = "cat /relative/new/note /absolute/new/deep/note";
    let mut config = stage.container("main", &["sh", "-c", script], &BTreeMap::new());
    config.layers.push(layer.clone());
    config.mounts = ["/relative/new", "/absolute/new/deep"]
        .map(|target| Mount {
            source: stage.directory.path().join("data"),
            target: target.into(),
            read_only: false,
            executable: false,
            sub_path: None,
        })
        .to_vec();
    let (_, output) = stage.run(&config).await;
    assert_eq!(
        output, "mountedmounted\n",
        "inside, they lead to what is made there"
    );
    fs::create_dir_all(layer.join(host.path().strip_prefix("/").expect("absolute"))).expect("mkdir");
    config.log_path = stage.log("there");
    config.name = "there".into();
    let (_, output) = stage.run(&config).await;
    assert_eq!(output, "mountedmounted\n", "inside, they lead there");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
    assert!(!mounts.contains(host.path().to_str().expect("text")), "{mounts}");
    let left: Vec<_> = fs::read_dir(host.path())
        .expect("lists")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["file"]);
    stage.end().await;
}

/// The helper of a session has the shim's files open while it enters the container's working directory. Which those are is
/// the shim's business; here it has inherited a directory of the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_inside_whatever_its_directory_has_become() {
    let host = tempfile::tempdir().expect("a directory");
    let open = fs::File::open(host.path()).expect("opens");
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).expect("inherited");
    let stage = Stage::new(&["directory"]).await;
    let link = format!("/proc/self/fd/{}", open.as_raw_fd());
    let script =
        format!("cd /; busybox rmdir /tmp/work; busybox ln -s {link} /tmp/work; echo up; exec sleep 1000");
    let mut config = stage.container("main", &["sh", "-c", &script], &BTreeMap::new());
    config.cwd = "/tmp/work".into();
    stage.start(0, &config).await;
    while stage.output("main") != "up\n" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let argv = ["sh", "-c", "readlink /proc/self/cwd"].map(String::from);
    let session = stage
        .runtime
        .exec(stage.pod(0), "main", &argv, Duration::from_secs(20))
        .await;
    let refused = session.expect_err("outside of the container").to_string();
    assert!(
        refused.contains("cannot enter the working directory"),
        "{refused}"
    );
    stage.end().await;
}

/// A container swaps a directory and a link to the host in a volume, while others start with that part of it mounted.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_volume_is_in_the_volume_whoever_swaps_its_name() {
    let stage = Stage::new(&["race"]).await;
    let data = stage.directory.path().join("data");
    let outside = stage.directory.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("note"), "of the host").expect("writes");
    let facts = BTreeMap::from([("OUTSIDE".to_owned(), outside.to_str().expect("text").to_owned())]);
    let attacker = stage.container("attacker", &["/bin/drill", "run", "subpath-race"], &facts);
    stage.start(0, &attacker).await;
    while fs::symlink_metadata(data.join("link")).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let script = "cat /part/note; echo >/part/mark";
    let (mut started, mut refused) = (0, 0);
    // The kernel has met the link as well as the directory.
    while started < 5 || refused < 5 {
        let name = format!("victim-{}", started + refused);
        let mut victim = stage.container(&name, &["sh", "-c", script], &BTreeMap::new());
        victim.mounts = vec![Mount {
            source: data.clone(),
            sub_path: Some("part".into()),
            target: "/part".into(),
            read_only: false,
            executable: false,
        }];
        match stage.runtime.start_container(stage.pod(0), &victim).await {
            Ok(_) => {
                started += 1;
                assert_eq!(stage.exit(&name).await.code, 0);
                assert_eq!(stage.output(&name), "of the volume\n");
            }
            Err(error) => {
                refused += 1;
                let text = format!("{error:?}");
                assert!(text.contains("data/part"), "{text}");
            }
        }
        assert!(started + refused < 200, "{started} and {refused}");
    }
    let left: Vec<_> = fs::read_dir(&outside)
        .expect("lists")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["note"]);
    fs::write(data.join("stop"), "").expect("writes");
    stage.exit("attacker").await;
    assert_eq!(stage.output("attacker"), "subpath-race=swapped\n");
    stage.end().await;
}

#[test]
fn the_table_is_the_corpus() {
    // Of when this was built: the test also runs where there is no source.
    let found = include_str!("../../../../docs/drills.md");
    let wanted = table();
    if std::env::var_os("PALISADE_WRITE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/drills.md");
        fs::write(path, &wanted).expect("writes");
    } else {
        assert!(
            found == wanted,
            "docs/drills.md is not what the corpus says; run this test with PALISADE_WRITE_DOCS=1"
        );
    }
    let mut names: Vec<_> = CORPUS
        .iter()
        .chain([&STRICT, &PROFILE])
        .flat_map(|family| family.drills)
        .map(|drill| drill.name)
        .collect();
    names.sort_unstable();
    let number = names.len();
    names.dedup();
    assert_eq!(names.len(), number, "a name stands twice");
}

fn table() -> String {
    let families = || CORPUS.iter().chain([&STRICT, &PROFILE]);
    let drills = || families().flat_map(|family| family.drills);
    let mut text = format!(
        "# Escape drills\n\n\
         {} attempts to get out of a container or to use up what it shares, each made for real by\n\
         `agent/runtime/tests/drills` in a container of root under the profile `baseline` (the last two kinds: a tighter one), as its\n\
         first process and in an exec session. This page is written from the data of that test, which fails if an attempt succeeds, or is stopped by\n\
         another layer than the one named here.\n\n\
         *Behind it*: what would still stop the attempt without seccomp and Landlock, where that holds on every kernel.\n",
        drills().count()
    );
    for family in families() {
        write!(
            text,
            "\n## {}\n\n| | Attempt | Stopped by | Behind it |\n|---|---|---|---|\n",
            family.title
        )
        .expect("writes");
        for drill in family.drills {
            let behind = drill.behind.map_or("", Layer::text);
            writeln!(
                text,
                "| `{}` | {} | {} | {behind} |",
                drill.name,
                drill.attempt,
                drill.stopped_by.text()
            )
            .expect("writes");
        }
    }
    text.push_str(
        "\nThe baseline lets these happen, which ordinary images do: just-in-time compilers, for example.\n",
    );
    let mut layers: Vec<Layer> = drills().map(|drill| drill.stopped_by).collect();
    layers.sort_unstable();
    layers.dedup();
    text.push_str(
        "\n## How a layer is shown to be the one\n\n| Layer | Attempts | What is seen |\n|---|---|---|\n",
    );
    for layer in layers {
        let number = drills().filter(|drill| drill.stopped_by == layer).count();
        writeln!(text, "| {} | {number} | {} |", layer.text(), layer.proof()).expect("writes");
    }
    text.push_str(
        "\n## Not stopped yet\n\n\
         - The node's disk can be filled through the writable layer or a disk emptyDir: there is no quota. A pod with limits\n\
         \u{20} (`ephemeral-storage`, `sizeLimit`) is measured every ten seconds and evicted when it is over one, so it has these ten seconds; one\n\
         \u{20} without limits goes when the node's own disk or its file numbers are short. See storage.md and node.md.\n\
         - Interpreters and the dynamic loader read code as data; see THREATS.md.\n",
    );
    text
}
