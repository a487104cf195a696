//! Sessions whose streams the agent holds, terminals, attachments, and sockets in a pod.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use agent_runtime::{ContainerConfig, ContainerState, Session, Streams};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::Winsize;

use crate::{Stage, alive, patience, wait_for};

/// What a process can find out about its own confinement.
pub(crate) const CONFINEMENT: &str = "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|Cap[A-Z][a-z][a-z]|Uid|Gid|Groups):' /proc/self/status; \
     cat /proc/self/uid_map /proc/self/gid_map; \
     cp /bin/busybox /tmp/dropped; /tmp/dropped true 2>&1; (echo x > /bin/evil) 2>&1; unshare -n true 2>&1; \
     mount -t tmpfs x /tmp 2>&1; echo $COLOUR $HOME; pwd; echo the end";

/// Reads what is there within a moment.
fn read_what_comes(stream: impl AsFd) -> String {
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 200_000_000,
    };
    let mut fds = [PollFd::new(&stream, PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&moment)).expect("polls") == 0 {
        return String::new();
    }
    let mut chunk = [0; 4096];
    let length = rustix::io::read(&stream, &mut chunk).expect("reads");
    String::from_utf8_lossy(&chunk[..length]).into_owned()
}

/// Reads until `wanted` or the end.
fn read_until(stream: impl AsFd, wanted: &str) -> String {
    let mut text = Vec::new();
    let deadline = Instant::now() + patience();
    loop {
        let shown = String::from_utf8_lossy(&text).into_owned();
        if !wanted.is_empty() && shown.contains(wanted) {
            return shown;
        }
        assert!(Instant::now() < deadline, "not in time: {shown}");
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&stream, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&second)).expect("polls");
        let mut chunk = [0; 4096];
        match rustix::io::read(&stream, &mut chunk) {
            // A terminal without a process says EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => return shown,
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => panic!("{error}: {shown}"),
        }
    }
}

fn write(stream: impl AsFd, text: &str) {
    assert_eq!(
        rustix::io::write(stream, text.as_bytes()).expect("writes"),
        text.len()
    );
}

fn taken(stream: Option<OwnedFd>) -> OwnedFd {
    stream.expect("the session has it")
}

async fn open(stage: &Stage, argv: &[&str], stdin: bool, tty: bool) -> Session {
    let argv: Vec<_> = argv.iter().map(|arg| (*arg).to_owned()).collect();
    let opened = stage
        .runtime
        .open_session(&stage.pod.uid, "main", &argv, stdin, tty)
        .await;
    opened.expect("the session starts")
}

async fn end(session: &mut Session) -> i32 {
    tokio::time::timeout(patience(), session.end.wait())
        .await
        .expect("in time")
        .expect("an end")
}

async fn started(name: &str, argv: &[&str]) -> Stage {
    let stage = Stage::new(name).await;
    let config = stage.container("main", argv);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_separate_and_input_ends() {
    let stage = started("streams", &["sleep", "1000"]).await;
    let script = "cat; echo done; echo oops >&2; exit 7";
    let mut session = open(&stage, &["sh", "-c", script], true, false).await;
    assert!(session.terminal.is_none());
    let stdin = taken(session.stdin.take());
    write(&stdin, "first\n");
    assert_eq!(
        read_until(session.stdout.as_ref().expect("here"), "first\n"),
        "first\n"
    );
    write(&stdin, "second\n");
    drop(stdin);
    assert_eq!(read_until(taken(session.stdout.take()), ""), "second\ndone\n");
    assert_eq!(read_until(taken(session.stderr.take()), ""), "oops\n");
    assert_eq!(end(&mut session).await, 7);

    // Without input there is none, rather than somebody else's.
    let mut session = open(&stage, &["sh", "-c", "wc -c; tty"], false, false).await;
    assert!(session.stdin.is_none());
    assert_eq!(
        read_until(taken(session.stdout.take()), "").lines().next(),
        Some("0")
    );

    let missing = ["/no/such".to_owned()];
    let error = stage
        .runtime
        .open_session(&stage.pod.uid, "main", &missing, true, true)
        .await;
    let error = error.expect_err("there is no such program").to_string();
    assert!(error.contains("/no/such"), "{error}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interactive_sessions_are_confined_as_init_is() {
    let stage = Stage::new("iconfined").await;
    let config = ContainerConfig {
        uid: 1000,
        gid: 1000,
        supplemental_gids: vec![2000],
        ..stage.container("main", &["sh", "-c", &format!("{CONFINEMENT}; exec sleep 1000")])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    wait_for(|| stage.output("main").contains("the end\n"));
    let init = stage.output("main");
    for tty in [false, true] {
        let mut session = open(&stage, &["sh", "-c", CONFINEMENT], true, tty).await;
        // Kept until the program has ended: it would be hung up on.
        let output = taken(if tty {
            session.terminal.take()
        } else {
            session.stdout.take()
        });
        let text = read_until(&output, "the end").replace('\r', "");
        assert_eq!(text.trim_end(), init.trim_end(), "tty: {tty}");
        assert_eq!(end(&mut session).await, 0);
    }
    for expected in [
        "Seccomp:\t2\n",
        "Seccomp_filters:\t1\n",
        "NoNewPrivs:\t1\n",
        "CapEff:\t0000000000000000\n",
        "Uid:\t1000\t1000\t1000\t1000\n",
        "3000000      65536",
        "/tmp/dropped: Permission denied",
        "can't create /bin/evil: Permission denied",
        "unshare(0x40000000): Operation not permitted",
    ] {
        assert!(init.contains(expected), "{expected} in {init}");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_controls_its_session() {
    let stage = started("terminal", &["sleep", "1000"]).await;
    let mut session = open(&stage, &["sh", "-i"], true, true).await;
    assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
    let terminal = taken(session.terminal.take());
    let size = Winsize {
        ws_row: 33,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size).expect("resizes");
    // The shell prints what it is asked for in two halves, so that its echo is not taken for the answer.
    let ask = |command: &str, wanted: &str| {
        write(&terminal, &format!("{command}\n"));
        read_until(&terminal, wanted)
    };
    ask("stty size; echo si''ze", "33 77\r\nsize");
    ask("tty; echo na''me", "/dev/pts/0\r\nname");
    ask("echo $TERM", "xterm\r\n");
    ask("ls -l /dev/pts/0; echo own''er", "owner");
    // Job control works: the terminal's interrupt key ends the job and leaves the shell.
    write(&terminal, "sleep 999\n");
    wait_for(|| runs(&stage, "sleep\u{0}999"));
    write(&terminal, "\u{3}");
    // At an interrupt the kernel drops what is under way in both directions, perhaps a prompt already; and a shell that takes
    // the terminal back drops what was typed before. An empty line asks for another prompt.
    read_until(&terminal, "^C");
    let (mut shown, deadline) = (String::new(), Instant::now() + patience());
    while !shown.contains("# ") {
        assert!(Instant::now() < deadline, "no prompt: {shown}");
        write(&terminal, "\n");
        shown += &read_what_comes(&terminal);
    }
    ask("echo alive $?; echo st''ill", "still");
    write(&terminal, "exit 5\n");
    assert_eq!(end(&mut session).await, 5);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_a_session_go_with_its_client() {
    let stage = started("goes", &["sleep", "1000"]).await;
    for tty in [false, true] {
        let mark = if tty { "3511" } else { "3512" };
        let script = format!("trap '' HUP; sleep {mark} & sleep {mark}; wait");
        let session = open(&stage, &["sh", "-c", &script], false, tty).await;
        let named = format!("sleep\u{0}{mark}");
        wait_for(|| runs(&stage, &named));
        drop(session);
        wait_for(|| !runs(&stage, &named));
    }
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    assert!(
        matches!(status.container("main").expect("here").state, ContainerState::Running { pid, .. } if alive(pid)),
        "the container itself goes on"
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_sessions_is_bounded() {
    let stage = started("bounded", &["sleep", "1000"]).await;
    let mut sessions = Vec::new();
    let argv = ["sleep".to_owned(), "1000".to_owned()];
    let refused = loop {
        let opened = stage
            .runtime
            .open_session(&stage.pod.uid, "main", &argv, true, false)
            .await;
        match opened {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        assert!(sessions.len() < 100, "no bound");
    };
    assert!(refused.to_string().contains("32 sessions"), "{refused}");
    // Whoever asks for something else is still served, and an ended session makes room.
    stage.runtime.status(&stage.pod.uid).await.expect("a status");
    drop(sessions.pop());
    let deadline = Instant::now() + patience();
    loop {
        let again = stage
            .runtime
            .open_session(&stage.pod.uid, "main", &argv, true, false)
            .await;
        match again {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_share_output_with_the_log() {
    let stage = Stage::new("attach").await;
    let script = "while read line; do echo got $line; echo err $line >&2; done; echo over; exit 3";
    let config = ContainerConfig {
        streams: Streams {
            stdin: true,
            stdin_once: true,
            tty: false,
        },
        ..stage.container("main", &["sh", "-c", script])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let attach = async |stdin| {
        let attached = stage.runtime.attach(&stage.pod.uid, "main", stdin).await;
        attached.expect("attaches")
    };
    let mut watcher = attach(false).await;
    assert!(watcher.stdin.is_none() && watcher.terminal.is_none());
    let mut writer = attach(true).await;
    let stdin = taken(writer.stdin.take());
    write(&stdin, "one\n");
    for session in [&watcher, &writer] {
        assert_eq!(
            read_until(session.stdout.as_ref().expect("here"), "\n"),
            "got one\n"
        );
        assert_eq!(
            read_until(session.stderr.as_ref().expect("here"), "\n"),
            "err one\n"
        );
    }
    // The input was for one client, so its end is the program's.
    assert!(attach(true).await.stdin.is_none());
    drop(stdin);
    assert_eq!(read_until(taken(watcher.stdout.take()), ""), "over\n");
    drop(watcher.stderr.take());
    assert_eq!(end(&mut watcher).await, 3);
    drop((writer.stdout.take(), writer.stderr.take()));
    assert_eq!(end(&mut writer).await, 3);
    assert_eq!(stage.exit("main").await.code, 3);
    let log = stage.output("main");
    for line in ["got one", "err one", "over"] {
        assert!(log.lines().any(|logged| logged == line), "{line} in {log}");
    }
    let late = stage.runtime.attach(&stage.pod.uid, "main", false).await;
    let late = late.expect_err("it has ended").to_string();
    assert!(late.contains("does not run"), "{late}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_on_a_terminal_and_is_logged() {
    let stage = Stage::new("tty").await;
    let config = ContainerConfig {
        uid: 1000,
        gid: 1000,
        streams: Streams {
            stdin: true,
            stdin_once: false,
            tty: true,
        },
        ..stage.container(
            "main",
            &[
                "sh",
                "-c",
                "tty; stty -echo; grep Seccomp: /proc/self/status; read x; stty size; echo got $x; exit 4",
            ],
        )
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    wait_for(|| stage.output("main").contains("Seccomp:\t2"));
    let mut session = stage
        .runtime
        .attach(&stage.pod.uid, "main", true)
        .await
        .expect("attaches");
    let terminal = taken(session.terminal.take());
    let size = Winsize {
        ws_row: 20,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size).expect("resizes");
    write(&terminal, "word\n");
    let text = read_until(taken(session.stdout.take()), "");
    assert!(text.contains("20 100\r\ngot word\r\n"), "{text:?}");
    assert_eq!(end(&mut session).await, 4);
    assert_eq!(stage.exit("main").await.code, 4);
    let log = stage.output("main");
    assert!(
        log.starts_with("/dev/pts/0\n") && log.contains("got word"),
        "{log:?}"
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_nobody_up_for_long() {
    let stage = Stage::new("stall").await;
    let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo line $i; done; exec sleep 1000";
    let waits = "read x; ";
    let config = ContainerConfig {
        streams: Streams {
            stdin: true,
            ..Streams::default()
        },
        log_max_bytes: 4 << 20,
        ..stage.container("main", &["sh", "-c", &format!("{waits}{script}")])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let mut idle = stage
        .runtime
        .attach(&stage.pod.uid, "main", true)
        .await
        .expect("attaches");
    write(taken(idle.stdin.take()), "go\n");
    // More than pipes hold, so the container waits; then the client is let go and all of it is in the log.
    // The client has ten seconds, and all that is logged has its price in time.
    let deadline = Instant::now() + patience() * 3;
    while !std::fs::read(stage.log("main"))
        .expect("a log")
        .ends_with(b" line 30000\n")
    {
        assert!(Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = tokio::time::timeout(patience(), idle.end.wait())
        .await
        .expect("in time");
    let refused = end.expect_err("let go").to_string();
    assert!(refused.contains("not read for 10 s"), "{refused}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_the_pod_reaches_its_loopback() {
    let stage = started(
        "socket",
        &["sh", "-c", "while :; do echo from-the-pod | nc -l -p 8080; done"],
    )
    .await;
    // The agent's network crate does this for a pod.
    let netns = stage
        .runtime
        .status(&stage.pod.uid)
        .await
        .expect("a status")
        .netns;
    let up = std::process::Command::new("/bin/busybox")
        .arg("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["/bin/busybox", "ip", "link", "set", "lo", "up"])
        .status();
    assert!(up.expect("busybox runs").success());
    let socket = async |ipv6| {
        let socket = stage.runtime.pod_socket(&stage.pod.uid, ipv6).await;
        socket.expect("a socket")
    };
    let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    // The first answer may come before the server listens.
    let deadline = Instant::now() + patience();
    let connected = loop {
        let stream = tokio::net::TcpSocket::from_std_stream(socket(false).await.into());
        match stream.connect(address(8080)).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let mut text = String::new();
    let mut reader = tokio::io::BufReader::new(connected);
    tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut text)
        .await
        .expect("reads");
    assert_eq!(text, "from-the-pod\n");
    // The host's loopback is another one.
    let host = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = host.local_addr().expect("an address").port();
    let elsewhere = tokio::net::TcpSocket::from_std_stream(socket(false).await.into());
    assert!(elsewhere.connect(address(port)).await.is_err());
    assert!(socket(true).await.as_fd().try_clone_to_owned().is_ok());
    stage.end().await;
}

/// Whether a process with this in its command line (words end with NUL) runs.
fn runs(stage: &Stage, command: &str) -> bool {
    let read = |process: &Path, name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
    let processes = std::fs::read_dir("/proc").expect("lists").flatten();
    let mut processes = processes.map(|process| process.path());
    processes.any(|process| {
        read(&process, "cmdline").trim_end_matches('\0') == command
            && read(&process, "cgroup").contains(&stage.cgroup_root)
    })
}

/// Programs may end at any moment of their start, however many others start and run beside them: every end is seen. A
/// lost one would leave the shim with a number that comes to mean another process of the host.
#[tokio::test(flavor = "multi_thread")]
async fn no_death_is_lost_among_many_starts() {
    let stage = started("deaths", &["sleep", "1000"]).await;
    let killer = stage.container(
        "killer",
        &["sh", "-c", "while :; do kill -9 -1 2>/dev/null; done"],
    );
    stage
        .runtime
        .start_container(&stage.pod.uid, &killer)
        .await
        .expect("starts");
    let argv = |text: &[&str]| text.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let (runtime, pod) = (stage.runtime.clone(), stage.pod.uid.clone());
    // Keeps the shim from ever being without a job.
    let long = tokio::spawn(async move {
        let sleep = ["sleep".to_owned(), "987654".to_owned()];
        runtime.exec(&pod, "main", &sleep, patience() * 50).await
    });
    wait_for(|| runs(&stage, "sleep\0987654"));
    for round in 0..100 {
        let sleep = argv(&["sleep", "1000"]);
        let killed = stage
            .runtime
            .exec(&stage.pod.uid, "killer", &sleep, patience() * 50);
        let killed = tokio::time::timeout(patience(), killed).await;
        let killed = killed.unwrap_or_else(|_late| panic!("round {round}: its death was lost"));
        assert_eq!(killed.expect("it was a program").code, 128 + 9, "round {round}");
        let short = argv(&["true"]);
        let ended = stage
            .runtime
            .exec(&stage.pod.uid, "main", &short, patience() * 50);
        let ended = tokio::time::timeout(patience(), ended).await;
        let ended = ended.unwrap_or_else(|_late| panic!("round {round}: its end was lost"));
        assert_eq!(ended.expect("runs").code, 0, "round {round}");
    }
    assert!(!long.is_finished(), "it ran all the time");
    stage.end().await;
    let _cut_off = long.await.expect("no panic");
}

/// The processes of a container, as the host counts them.
fn members(stage: &Stage, container: &str) -> usize {
    let group = format!(
        "{}/{}/{container}-0/cgroup.procs",
        stage.cgroup_root, stage.pod.uid
    );
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("lists").flatten();
    let places = hierarchies
        .map(|hierarchy| hierarchy.path().join(&group))
        .chain([Path::new("/sys/fs/cgroup").join(&group)]);
    let lists: Vec<_> = places
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    lists.first().expect("a control group").lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_do_not_end_leave_the_pod_answerable() {
    let stage = started("full", &["sleep", "1000"]).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (runtime, pod) = (stage.runtime.clone(), stage.pod.uid.clone());
        let argv = ["sleep", "1000"].map(str::to_owned);
        waiting.spawn(async move { runtime.exec(&pod, "main", &argv, patience() * 50).await });
    }
    // Those beyond the bound are told so; the others wait.
    let refused = async {
        for _ in 0..16 {
            let answer = waiting
                .join_next()
                .await
                .expect("there are more")
                .expect("no panic");
            let refused = answer.expect_err("there is no room").to_string();
            assert!(refused.contains("24 programs"), "{refused}");
        }
    };
    tokio::time::timeout(patience(), refused).await.expect("in time");
    let status = stage.runtime.status(&stage.pod.uid);
    tokio::time::timeout(patience(), status)
        .await
        .expect("answers")
        .expect("a status");
    assert_eq!(waiting.len(), 24);
    tokio::time::timeout(patience(), stage.end())
        .await
        .expect("the pod can be removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_hangs_does_not_keep_its_pod() {
    let stage = started("hung", &["sleep", "1000"]).await;
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    let shim = rustix::process::Pid::from_raw(status.shim_pid).expect("a number");
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).expect("stops");
    stage.runtime.remove_pod(&stage.pod.uid).await.expect("removed");
    wait_for(|| !alive(status.shim_pid));
    stage.nothing_is_left(Some(status)).await;
}

/// A container can stop a program before it is executed. What was begun goes when the start is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_stopped_leaves_nothing_behind() {
    let script = "while :; do kill -STOP -1 2>/dev/null; done";
    let stage = started("stopped", &["sh", "-c", script]).await;
    let mut given_up = 0;
    // The moment before a program is executed is short, and beside other work the container may not run in it: beside two
    // busy processors and five more of these tests, every second crowd of starts came through.
    for _ in 0..30 {
        if given_up == 0 {
            given_up = give_up_starts(&stage).await;
        }
    }
    assert!(given_up > 0, "none was stopped before it was executed");
    wait_for(|| members(&stage, "main") == 1);
    stage.end().await;
}

/// Starts many programs in a container that stops them. How many were stopped before they were executed; the others end
/// with their time.
async fn give_up_starts(stage: &Stage) -> usize {
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (runtime, pod) = (stage.runtime.clone(), stage.pod.uid.clone());
        let argv = ["sleep", "1000"].map(str::to_owned);
        starts.spawn(async move { runtime.exec(&pod, "main", &argv, Duration::from_secs(1)).await });
    }
    let mut given_up = 0;
    while let Some(start) = starts.join_next().await {
        match start.expect("no panic") {
            Ok(killed) => assert_eq!(killed.code, 128 + 9),
            Err(error) => {
                assert!(error.to_string().contains("not started within"), "{error}");
                given_up += 1;
            }
        }
    }
    given_up
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_share_of_the_terminals() {
    // Shells that are refused at once write into each other's lines: what is counted is the words.
    let script = "for i in $(seq 160); do sleep 1000 <>/dev/ptmx & done 2>/tmp/refused; \
         until [ $(ls /dev/pts | grep -c '[0-9]') -ge 128 ]; do sleep 0.1; done; \
         until [ $(grep -o 'No space' /tmp/refused | wc -l) -ge 32 ]; do sleep 0.1; done; ls /dev/pts | grep -c '[0-9]'";
    let stage = Stage::new("ptys").await;
    let (exit, output) = stage.shell("main", script).await;
    assert_eq!((exit.code, output.trim()), (0, "128"));
    stage.end().await;
}
