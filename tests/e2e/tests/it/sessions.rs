//! `exec`, `attach`, `cp`, `port-forward` and `logs` with the real kubectl of every version that is here: SPDY and
//! WebSocket, pipes and terminals.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    net::TcpStream,
    os::fd::AsFd as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, kubectls, pod},
    shell::{Ran, eventually},
};
use rustix::termios::{Winsize, tcsetwinsize};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sessions_exec_with_every_kubectl", exec_with_every_kubectl),
    ("sessions_are_confined_as_the_container_is", are_confined),
    ("sessions_on_a_terminal_follow_its_size", on_a_terminal),
    ("sessions_copy_files_both_ways", copy_files),
    ("sessions_forward_ports", forward_ports),
    ("sessions_attach_and_run", attach_and_run),
    ("sessions_refusals_say_why", refusals_say_why),
    ("sessions_end_with_their_client", end_with_their_client),
    ("sessions_are_audited_without_their_content", are_audited),
    ("logs_every_flag", logs_every_flag),
];

const PATIENCE: Duration = Duration::from_secs(20);

/// A pod that serves files on port 8080 and waits.
fn start(cluster: &Cluster) -> Result<()> {
    if cluster.kubectl(&["get", "pod", "shell"])?.code == 0 {
        return Ok(());
    }
    let image = cluster.push(&lab::clean()?, "sessions/clean", "1")?;
    let script = "mkdir /tmp/www; echo served > /tmp/www/index.html; \
        dd if=/dev/zero of=/tmp/www/large bs=1024 count=3000 2>/dev/null; exec httpd -f -p 8080 -h /tmp/www";
    let yaml = pod(
        "default",
        "shell",
        "app: shell",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "shell", "Running")?;
    Ok(())
}

fn exec_with_every_kubectl(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    for (minor, program) in kubectls()? {
        exec_with(cluster, &program).with_context(|| format!("kubectl 1.{minor}"))?;
    }
    Ok(())
}

fn exec_with(cluster: &Cluster, program: &Path) -> Result<()> {
    let exec = |flags: &[&str], command: &[&str], input: &str| {
        let arguments = [&["exec"], flags, &["shell", "--"], command].concat();
        cluster.kubectl_of(program, &arguments, input)
    };
    let ran = exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 3"], "")?;
    ensure!(
        ran.code == 3 && ran.stdout == "out\n" && ran.stderr.starts_with("err\n"),
        "{ran}"
    );
    ensure!(ran.stderr.contains("exit code 3"), "{ran}");
    // Much in both directions, and the end of input arrives.
    let long = "0123456789abcdef\n".repeat(100_000);
    let ran = exec(&["-i"], &["cat"], &long)?.ok()?;
    ensure!(ran.stdout == long, "{} bytes of {}", ran.stdout.len(), long.len());
    let ran = exec(&[], &["sh", "-c", "wc -c"], "not for it")?.ok()?;
    ensure!(ran.stdout.trim() == "0", "{ran}");
    let ran = exec(&[], &["no-such-program"], "")?.refused()?;
    ran.says("no-such-program")?.says("No such file")?;
    exec(&["-c", "main"], &["true"], "")?.ok()?;
    exec(&["-c", "other"], &["true"], "")?
        .refused()?
        .says("container other is not valid for pod shell")?;
    Ok(())
}

fn are_confined(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    let read = "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|Cap[A-Z][a-z][a-z]|Uid|Groups):' /proc/$0/status; cat /proc/$0/uid_map";
    let of = |which: &str, flags: &[&str]| -> Result<String> {
        let arguments = [&["exec"], flags, &["shell", "--", "sh", "-c", read, which]].concat();
        Ok(cluster.kubectl(&arguments)?.ok()?.stdout)
    };
    let (init, session) = (of("1", &[])?, of("self", &[])?);
    ensure!(init == session, "{init}\n{session}");
    ensure!(
        init.contains("Seccomp:\t2") && init.contains("NoNewPrivs:\t1"),
        "{init}"
    );
    // What Landlock forbids to the container it forbids here, to a process on a terminal too.
    let attempts = "cp /bin/busybox /tmp/dropped; /tmp/dropped true; (echo x > /bin/evil); unshare -n true";
    let shown = on_terminal(cluster, &["shell", "--", "sh", "-c", attempts])?;
    for refused in [
        "/tmp/dropped: Permission denied",
        "can't create /bin/evil: Permission denied",
        "unshare(0x40000000): Operation not permitted",
    ] {
        ensure!(shown.contains(refused), "{refused} in {shown}");
    }
    Ok(())
}

/// `kubectl logs -f`, once it follows.
pub(crate) struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Returns when the log's first line that was asked for is read.
    pub(crate) fn start(cluster: &Cluster, arguments: &[&str], first: &str) -> Result<Self> {
        let (_, program) = kubectls()?.pop().context("there is no kubectl on the PATH")?;
        let mut child = Command::new(program)
            .args(["--kubeconfig", &cluster.kubeconfig(), "logs", "-f"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let read = lines.next().transpose()?;
        ensure!(read.as_deref() == Some(first), "{read:?} is not {first:?}");
        Ok(Self { child, lines })
    }

    /// The lines after the first, up to the end of the container.
    pub(crate) fn rest(mut self) -> Result<Vec<String>> {
        let rest = self.lines.collect::<std::io::Result<_>>()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "kubectl logs -f ended with {status}");
        Ok(rest)
    }
}

/// A command with a terminal of its own, and everything it printed there.
pub(crate) struct OnTerminal {
    child: Child,
    outer: File,
    seen: Arc<Mutex<String>>,
    /// Ends when no process has the terminal any more.
    reader: std::thread::JoinHandle<()>,
}

impl OnTerminal {
    /// `setsid` gives the command the terminal as a login shell would have it.
    pub(crate) fn start(cluster: &Cluster, program: &Path, arguments: &[&str]) -> Result<Self> {
        let size = nix::pty::Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = nix::pty::openpty(&size, None).context("cannot make a terminal")?;
        let inner = || -> Result<Stdio> { Ok(pair.slave.try_clone()?.into()) };
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(program)
            .args(["--kubeconfig", &cluster.kubeconfig()])
            .args(arguments)
            .stdin(inner()?)
            .stdout(inner()?)
            .stderr(inner()?)
            .spawn()
            .context("cannot start setsid")?;
        drop(pair.slave);
        let outer = File::from(pair.master);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reading, writing) = (outer.try_clone()?, Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // A terminal without processes ends with an error.
            while let Ok(length @ 1..) = reading.read(&mut chunk) {
                let text = String::from_utf8_lossy(chunk.get(..length).unwrap_or_default()).into_owned();
                writing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Ok(Self {
            child,
            outer,
            seen,
            reader,
        })
    }

    fn seen(&self) -> String {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace('\r', "")
    }

    pub(crate) fn wait_for(&self, text: &str) -> Result<String> {
        eventually(PATIENCE, || {
            let seen = self.seen();
            match seen.contains(text) {
                true => Ok(seen),
                false => bail!("no {text:?} in {seen:?}"),
            }
        })
    }

    pub(crate) fn say(&mut self, text: &str) -> Result<()> {
        self.outer
            .write_all(text.as_bytes())
            .context("cannot write to the terminal")
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(self.outer.as_fd(), size).context("cannot resize the terminal")
    }

    pub(crate) fn end(&mut self) -> Result<i32> {
        let code = eventually(PATIENCE, || match self.child.try_wait()? {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => bail!("it does not end: {:?}", self.seen()),
        })?;
        // What was said last is read by then.
        eventually(PATIENCE, || {
            ensure!(
                self.reader.is_finished(),
                "the terminal does not end: {:?}",
                self.seen()
            );
            Ok(())
        })?;
        Ok(code)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn on_terminal(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let (_, program) = kubectls()?.pop().context("there is no kubectl on the PATH")?;
    let arguments = [&["exec", "-it"], arguments].concat();
    let mut session = OnTerminal::start(cluster, &program, &arguments)?;
    session.end()?;
    Ok(session.seen())
}

fn on_a_terminal(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    for (minor, program) in kubectls()? {
        one_terminal(cluster, &program).with_context(|| format!("kubectl 1.{minor}"))?;
    }
    Ok(())
}

fn one_terminal(cluster: &Cluster, program: &Path) -> Result<()> {
    let mut session = OnTerminal::start(cluster, program, &["exec", "-it", "shell", "--", "sh"])?;
    session.wait_for("# ")?;
    // Asked for in two halves, so that the echo is not taken for the answer.
    session.say("tty; echo na''me\n")?;
    session.wait_for("/dev/pts/0\nname")?;
    eventually(PATIENCE, || {
        session.say("stty size\n")?;
        session.wait_for("24 80\n")
    })?;
    session.resize(120, 40)?;
    eventually(PATIENCE, || {
        session.say("stty size\n")?;
        let seen = session.seen();
        ensure!(seen.contains("40 120\n"), "{seen:?}");
        Ok(())
    })?;
    // The interrupt key reaches the job and not kubectl. While the shell edits a line it is an ordinary character.
    session.say("echo beg''un; sleep 1000\n")?;
    session.wait_for("begun\n")?;
    session.say("\u{3}")?;
    session.say("echo still he''re\n")?;
    session.wait_for("still here")?;
    session.say("exit 9\n")?;
    let code = session.end()?;
    ensure!(code == 9, "{code}: {:?}", session.seen());
    Ok(())
}

fn copy_files(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let content: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(path("up"), &content)?;
    for (minor, program) in kubectls()? {
        let copy = |from: &str, to: &str| cluster.kubectl_of(&program, &["cp", from, to], "");
        let there = format!("shell:/tmp/file-{minor}");
        copy(&path("up"), &there)?
            .ok()
            .with_context(|| format!("kubectl 1.{minor}"))?;
        let back = path(&format!("down-{minor}"));
        copy(&there, &back)?
            .ok()
            .with_context(|| format!("kubectl 1.{minor}"))?;
        ensure!(
            std::fs::read(&back)? == content,
            "kubectl 1.{minor} copied something else"
        );
    }
    Ok(())
}

/// `kubectl port-forward` while it runs.
struct Forwarding {
    child: Child,
    ports: Vec<u16>,
    errors: Arc<Mutex<String>>,
}

impl Forwarding {
    fn start(cluster: &Cluster, program: &Path, remote: &[u16]) -> Result<Self> {
        let ports: Vec<String> = remote.iter().map(|port| format!(":{port}")).collect();
        let mut child = Command::new(program)
            .args(["--kubeconfig", &cluster.kubeconfig(), "port-forward", "pod/shell"])
            .args(["--address", "127.0.0.1"])
            .args(&ports)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let output = child.stdout.take().context("kubectl has no output")?;
        let mut stderr = child.stderr.take().context("kubectl has no errors")?;
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&errors);
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            while let Ok(length @ 1..) = stderr.read(&mut chunk) {
                let text = String::from_utf8_lossy(chunk.get(..length).unwrap_or_default()).into_owned();
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        let mut forwarding = Self {
            child,
            ports: Vec::new(),
            errors,
        };
        let mut lines = BufReader::new(output).lines();
        while forwarding.ports.len() < remote.len() {
            let line = lines
                .next()
                .with_context(|| format!("kubectl ended: {}", forwarding.errors()))??;
            // Forwarding from 127.0.0.1:40123 -> 8080
            let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next());
            let port = port.and_then(|port| port.parse().ok());
            forwarding
                .ports
                .push(port.with_context(|| format!("no port in {line:?}"))?);
        }
        // What it says for each connection must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        Ok(forwarding)
    }

    fn errors(&self) -> String {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect to kubectl")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn forward_ports(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    for (minor, program) in kubectls()? {
        forward_with(cluster, &program).with_context(|| format!("kubectl 1.{minor}"))?;
    }
    Ok(())
}

fn forward_with(cluster: &Cluster, program: &Path) -> Result<()> {
    let forwarding = Forwarding::start(cluster, program, &[8080, 8080, 8081])?;
    let [first, second, closed] = forwarding.ports.as_slice() else {
        bail!("{:?}", forwarding.ports)
    };
    for port in [first, second] {
        let answer = get(*port, "/index.html")?;
        ensure!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("served\n"),
            "{answer:?}"
        );
    }
    // One that is held open and idle, and many at once, each with much to say.
    let idle = TcpStream::connect(("127.0.0.1", *second))?;
    let ports = [*first, *second];
    let many: Vec<_> = (0..8_usize)
        .map(|n| {
            let port = ports.get(n % 2).copied().unwrap_or_default();
            std::thread::spawn(move || get(port, "/large"))
        })
        .collect();
    for thread in many {
        let Ok(answer) = thread.join() else {
            bail!("a reader panicked")
        };
        let length = answer?.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
        ensure!(length == 3000 * 1024, "{length} bytes: {}", forwarding.errors());
    }
    drop(idle);
    // A port on which nothing listens: kubectl is told why.
    let _empty = get(*closed, "/");
    eventually(PATIENCE, || {
        let errors = forwarding.errors();
        ensure!(
            errors.contains("cannot connect to port 8081 inside the pod") && errors.contains("refused"),
            "{errors}"
        );
        Ok(())
    })
}

fn attach_and_run(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "sessions/clean", "1")?;
    for (minor, program) in kubectls()? {
        attach_with(cluster, &program, &image).with_context(|| format!("kubectl 1.{minor}"))?;
    }
    Ok(())
}

fn attach_with(cluster: &Cluster, program: &Path, image: &str) -> Result<()> {
    // A pod of its own for each command, at the terminal.
    let image_flag = format!("--image={image}");
    let mut run = OnTerminal::start(
        cluster,
        program,
        &[
            "run",
            "once",
            "-it",
            "--rm",
            "--restart=Never",
            &image_flag,
            "--",
            "sh",
        ],
    )?;
    // The prompt may have been printed before kubectl was attached.
    run.wait_for("try pressing enter")?;
    run.say("echo from the''re; tty\n")?;
    run.wait_for("from there\n/dev/pts/0")?;
    run.say("exit\n")?;
    let code = run.end()?;
    ensure!(
        code == 0 && run.seen().contains("deleted"),
        "{code}: {:?}",
        run.seen()
    );
    cluster.kubectl(&["get", "pod", "once"])?.refused()?;

    // Through pipes: input ends, so the program does.
    let ran = cluster.kubectl_of(
        program,
        &[
            "run",
            "piped",
            "-i",
            "--rm",
            "--restart=Never",
            &image_flag,
            "--",
            "sh",
            "-c",
            "cat; echo over",
        ],
        "one\ntwo\n",
    )?;
    ensure!(ran.code == 0 && ran.stdout.contains("one\ntwo\nover\n"), "{ran}");

    // The exit code is the pod's, and what was printed is printed once.
    let ran = cluster.kubectl_of(
        program,
        &[
            "run",
            "failing",
            "-i",
            "--rm",
            "--restart=Never",
            &image_flag,
            "--",
            "sh",
            "-c",
            "read line; echo heard $line; exit 3",
        ],
        "one\n",
    )?;
    ensure!(
        ran.code == 3 && ran.stdout.matches("heard one\n").count() == 1,
        "{ran}"
    );

    // Following a pod, which loses nothing of its log and does not end with the client.
    let yaml = pod(
        "default",
        "ticking",
        "app: x",
        image,
        &[
            "sh",
            "-c",
            "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done",
        ],
        "restartPolicy: Never",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "ticking", "Running")?;
    let mut attached = Command::new(program)
        .args(["--kubeconfig", &cluster.kubeconfig(), "attach", "ticking"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = attached.stdout.take().context("kubectl has no output")?;
    let mut lines = BufReader::new(output).lines();
    let seen: Vec<String> = lines.by_ref().take(3).collect::<std::io::Result<_>>()?;
    attached.kill()?;
    attached.wait()?;
    ensure!(seen.iter().all(|line| line.starts_with("tick ")), "{seen:?}");
    let log = cluster.kubectl(&["logs", "ticking"])?.ok()?.stdout;
    for (number, line) in (1..).zip(log.lines()) {
        ensure!(line == format!("tick {number}"), "{log}");
    }
    ensure!(
        cluster.object("default", "pods", "ticking")?["status"]["phase"] == "Running",
        "it ended with its client"
    );
    cluster
        .kubectl(&["delete", "pod", "ticking", "--grace-period=0", "--force"])?
        .ok()?;
    Ok(())
}

fn refusals_say_why(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    let image = cluster.push(&lab::clean()?, "sessions/clean", "1")?;
    cluster.run_pod("default", "finished", &image, &["true"])?;
    for (minor, program) in kubectls()? {
        let says = |arguments: &[&str], text: &str| -> Result<Ran> {
            cluster
                .kubectl_of(&program, arguments, "")?
                .refused()?
                .says(text)
                .with_context(|| format!("kubectl 1.{minor}"))
        };
        says(&["exec", "finished", "--", "true"], "completed pod")?;
        says(&["exec", "nosuch", "--", "true"], "not found")?;
        says(&["attach", "shell", "-c", "nosuch"], "nosuch")?;
        says(&["port-forward", "pod/finished", ":80"], "")?;
    }
    // Without kubectl's own checks in between.
    let raw = |path: &str| cluster.kubectl(&["create", "--raw", path, "-f", "/dev/null"]);
    raw("/api/v1/namespaces/default/pods/finished/exec?command=true&stdout=true&container=main")?
        .refused()?
        .says("completed pod; current phase is Succeeded")?;
    raw("/api/v1/namespaces/default/pods/shell/exec?command=true&stdout=true&container=main")?
        .refused()?
        .says("Upgrade request required")?;
    raw("/api/v1/namespaces/default/pods/shell/exec?stdout=true&container=main")?
        .refused()?
        .says("at least one command")?;
    cluster.kubectl(&["delete", "pod", "finished"])?.ok()?;
    Ok(())
}

fn end_with_their_client(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    let runs = |mark: &str| -> Result<bool> {
        let ran = cluster.kubectl(&["exec", "shell", "--", "ps"])?.ok()?;
        Ok(ran.stdout.contains(&format!("sleep {mark}")))
    };
    for (minor, program) in kubectls()? {
        let mark = format!("35{minor}");
        let mut client = Command::new(&program)
            .args(["--kubeconfig", &cluster.kubeconfig(), "exec", "shell", "--"])
            .args(["sh", "-c", &format!("sleep {mark} & sleep {mark}")])
            .stdout(Stdio::null())
            .spawn()?;
        let begun = eventually(PATIENCE, || {
            ensure!(runs(&mark)?, "the session does not begin");
            Ok(())
        });
        client.kill()?;
        client.wait()?;
        begun?;
        eventually(PATIENCE, || {
            ensure!(!runs(&mark)?, "processes of a session outlive its client");
            Ok(())
        })
        .with_context(|| format!("kubectl 1.{minor}"))?;
    }
    Ok(())
}

fn are_audited(cluster: &Cluster) -> Result<()> {
    start(cluster)?;
    let secret = "never-to-be-logged";
    cluster
        .kubectl_with_input(
            &["exec", "-i", "shell", "--", "sh", "-c", "cat >/dev/null; exit 6"],
            secret,
        )?
        .refused()?;
    let path = cluster.state_dir.join("logs/control.log");
    eventually(PATIENCE, || {
        let log = std::fs::read_to_string(&path)?;
        let ended = log
            .lines()
            .find(|line| line.contains("session ended") && line.contains("exit 6"));
        let line = ended.with_context(|| format!("no record of the session in {}", path.display()))?;
        for part in ["shell", "main", "exec", "127.0.0.1", "code=6", "seconds="] {
            ensure!(line.contains(part), "{part} in {line}");
        }
        ensure!(!log.contains(secret), "what was said is in the log");
        Ok(())
    })
}

fn logs_every_flag(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "sessions/clean", "1")?;
    let script = "if [ -e /data/again ]; then echo second run; exec sleep 1000; fi; touch /data/again; \
        echo early; sleep 3; echo late; echo last; exit 1";
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: talker, labels: {{app: x}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: main\n    image: {image}\n    command: [sh, -c, '{script}']\n    volumeMounts: [{{name: d, mountPath: /data}}]\n  \
         volumes: [{{name: d, emptyDir: {{}}}}]\n"
    );
    cluster.apply(&yaml)?.ok()?;
    eventually(Duration::from_secs(60), || {
        let log = cluster.kubectl(&["logs", "talker"])?;
        ensure!(log.stdout == "second run\n", "{log}");
        Ok(())
    })?;
    for (minor, program) in kubectls()? {
        let logs = |flags: &[&str]| -> Result<String> {
            let arguments = [&["logs", "talker"], flags].concat();
            Ok(cluster
                .kubectl_of(&program, &arguments, "")?
                .ok()
                .with_context(|| format!("kubectl 1.{minor}"))?
                .stdout)
        };
        let expect = |flags: &[&str], expected: &str| -> Result<()> {
            let text = logs(flags)?;
            ensure!(text == expected, "kubectl 1.{minor} {flags:?}: {text:?}");
            Ok(())
        };
        expect(&["--previous"], "early\nlate\nlast\n")?;
        expect(&["-p", "--tail=2"], "late\nlast\n")?;
        expect(&["-p", "--tail=0"], "")?;
        expect(&["-p", "--limit-bytes=8"], "early\nla")?;
        expect(&["--since=1h"], "second run\n")?;
        let stamped = logs(&["-p", "--timestamps"])?;
        let times: Vec<&str> = stamped
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        let [early, late, _last] = times.as_slice() else {
            bail!("{stamped:?}")
        };
        ensure!(early < late && early.ends_with('Z'), "{stamped}");
        // kubectl takes whole seconds only; the two lines are three seconds apart.
        let since = format!("--since-time={}Z", late.get(..19).unwrap_or_default());
        expect(&["-p", &since], "late\nlast\n")?;
    }
    let follower = Follower::start(cluster, &["--tail=1", "talker"], "second run")?;
    cluster.kubectl(&["delete", "pod", "talker"])?.ok()?;
    follower.rest()?;
    logs_of_what_crashes(cluster, &image)
}

/// While it waits to be started again, the previous run is the one that crashed last.
fn logs_of_what_crashes(cluster: &Cluster, image: &str) -> Result<()> {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: crasher}}\nspec:\n  containers:\n  \
         - name: main\n    image: {image}\n    command: [sh, -c, 'echo x >> /data/runs; wc -l < /data/runs; exit 1']\n    \
         volumeMounts: [{{name: d, mountPath: /data}}]\n  volumes: [{{name: d, emptyDir: {{}}}}]\n"
    );
    cluster.apply(&yaml)?.ok()?;
    eventually(Duration::from_secs(60), || {
        let status = &cluster.object("default", "pods", "crasher")?["status"]["containerStatuses"][0];
        let waits = status["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        ensure!(waits && status["restartCount"].as_u64() >= Some(1), "{status}");
        let expected = status["restartCount"].as_u64().map(|restarts| restarts + 1);
        let previous = cluster.kubectl(&["logs", "-p", "crasher"])?;
        ensure!(
            previous.stdout.trim().parse().ok() == expected,
            "{status}\n{previous}"
        );
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "crasher", "--now"])?.ok()?;
    Ok(())
}
