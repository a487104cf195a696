//! Two pods joined through a host, each in a network namespace, linked as the agent links pods: one address each,
//! permanent neighbours, packets forwarded by the host's stack. What they send stays inside.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

/// Address of the pod that opens connections.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// Address of the pod that answers.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 3);
/// Host sides of their links, named as the agent names them: its nftables table speaks of all such names.
pub(crate) const CLIENT_LINK: &str = "palclient";
pub(crate) const SERVER_LINK: &str = "palserver";
/// Answers one byte for one byte and closes.
pub(crate) const TCP_PORT: u16 = 8080;
/// Sends datagrams back.
pub(crate) const UDP_PORT: u16 = 8081;
/// Of iperf3.
pub(crate) const BULK_PORT: u16 = 5201;

/// Threads that open connections, and threads that answer.
const CLIENTS: u32 = 4;
const SERVERS: u32 = 2;
/// Few enough that closed connections of one sample fit into every table of tracked flows.
const CONNECTIONS_EACH: u32 = 750;
const DATAGRAMS: u32 = 2000;
/// A lost packet fails the benchmark instead of hiding in it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often threads look whether they should stop, in milliseconds.
const LOOK_EVERY_MS: u32 = 200;

/// A pod: a thread in a network namespace of its own, which lives as long as the thread.
pub(crate) struct Pod {
    /// Host side of the link.
    pub(crate) ifindex: u32,
    /// MAC address of the pod's side.
    pub(crate) mac: [u8; 6],
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Both pods, and what answers in the second.
pub(crate) struct Pair {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    stop: Arc<AtomicBool>,
    answering: Vec<JoinHandle<Result<()>>>,
}

impl Pair {
    /// Links two pods to the caller's network namespace, which serves as the host.
    pub(crate) fn plug_in() -> Result<Self> {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot forward")?;
        ip("link set lo up")?;
        let client = Pod::plug_in(CLIENT_LINK, CLIENT, [2, 0, 0, 0, 1, 2])?;
        let server = Pod::plug_in(SERVER_LINK, SERVER, [2, 0, 0, 0, 1, 3])?;
        client.inside(|| {
            // Sockets of connections that were closed a second ago are free again, so ports do not run out.
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").context("cannot reuse ports")?;
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000").context("cannot widen ports")
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let answering = server.inside(move || answer(&told))?;
        Ok(Self {
            client,
            server,
            stop,
            answering,
        })
    }

    /// Connections per second: connect, one byte, one byte back, close; several at a time.
    pub(crate) fn connections_per_second(&self) -> Result<f64> {
        self.client.inside(|| {
            let start = Instant::now();
            let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(connect_often)).collect();
            for client in clients {
                client.join().map_err(|_panic| anyhow!("a client panicked"))??;
            }
            Ok(f64::from(CLIENTS * CONNECTIONS_EACH) / start.elapsed().as_secs_f64())
        })
    }

    /// Median time from the first datagram of a flow to its answer, in microseconds.
    pub(crate) fn first_answer_us(&self) -> Result<f64> {
        self.client.inside(|| {
            let mut times = Vec::new();
            for _ in 0..DATAGRAMS {
                let socket = UdpSocket::bind((CLIENT, 0)).context("cannot make a socket")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect((SERVER, UDP_PORT))?;
                let start = Instant::now();
                socket.send(b"x").context("cannot send a datagram")?;
                socket.recv(&mut [0]).context("a datagram was not answered")?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            Ok(crate::median(times))
        })
    }

    /// Throughput of one TCP connection in Gbit/s, as iperf3 measures it.
    pub(crate) fn gigabits(&self, seconds: u32) -> Result<f64> {
        let mut listening = self.server.inside(|| {
            let port = BULK_PORT.to_string();
            let mut child = Command::new("iperf3")
                .args(["--server", "--one-off", "--forceflush", "--port", &port])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start iperf3; run `cargo xtask setup --dev`")?;
            // It says that it listens before it does anything else.
            let mut seen = Vec::new();
            let mut output = child.stdout.take().context("no output of iperf3")?;
            while !String::from_utf8_lossy(&seen).contains("listening") {
                let mut some = [0; 256];
                let count = output.read(&mut some).context("cannot read from iperf3")?;
                ensure!(count > 0, "iperf3 ended: {}", String::from_utf8_lossy(&seen));
                seen.extend(some.iter().take(count));
            }
            // What it says later must not fill the pipe and stop it.
            thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
            Ok(child)
        })?;
        let sent = self.client.inside(move || {
            let output = Command::new("iperf3")
                .args([
                    "--json",
                    "--connect-timeout",
                    "5000",
                    "--port",
                    &BULK_PORT.to_string(),
                ])
                .args(["--time", &seconds.to_string(), "--client", &SERVER.to_string()])
                .output()
                .context("cannot start iperf3")?;
            let report: serde_json::Value =
                serde_json::from_slice(&output.stdout).context("iperf3 wrote something other than JSON")?;
            report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .with_context(|| format!("iperf3 measured nothing: {}", report["error"]))
        });
        if sent.is_err() {
            listening.kill().context("cannot end iperf3")?;
        }
        listening.wait().context("cannot wait for iperf3")?;
        Ok(sent? / 1e9)
    }

    /// Ends what answers; the namespaces go with the last thread in them.
    pub(crate) fn unplug(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.answering {
            thread.join().map_err(|_panic| anyhow!("a server panicked"))??;
        }
        ip(&format!("link del {CLIENT_LINK}"))?;
        ip(&format!("link del {SERVER_LINK}"))
    }
}

impl Pod {
    fn plug_in(link: &str, address: Ipv4Addr, mac: [u8; 6]) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace");
            let thread =
                made.and_then(|()| fs::read_link("/proc/thread-self").context("cannot find the thread"));
            // Whoever asked waits for the answer; if not, there are no jobs either.
            drop(ready.send(thread));
            queue.into_iter().for_each(|job| job());
        });
        let thread = is_ready.recv().context("the pod's thread ended")??;
        let open = |path: String| File::open(&path).with_context(|| format!("cannot open {path}"));
        let namespace = open(format!("/proc/{}/ns/net", thread.display()))?;
        let host = open("/proc/thread-self/ns/net".to_owned())?;
        let id = thread
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mac_text = mac.map(|byte| format!("{byte:02x}")).join(":");
        ip(&format!(
            "link add {link} type veth peer name eth0 address {mac_text} netns {id}"
        ))?;
        ip(&format!("link set {link} address 02:00:00:00:00:fe up"))?;
        ip(&format!("route add {address}/32 dev {link}"))?;
        ip(&format!(
            "neigh replace {address} lladdr {mac_text} dev {link} nud permanent"
        ))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the pod")?;
        let inner = [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {address}/32 dev eth0"),
            "route add 169.254.1.1 dev eth0".to_owned(),
            "route add default via 169.254.1.1 dev eth0".to_owned(),
            "neigh replace 169.254.1.1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent".to_owned(),
        ];
        let set_up: Result<()> = inner.iter().try_for_each(|line| ip(line));
        setns(&host, CloneFlags::CLONE_NEWNET).context("cannot leave the pod")?;
        set_up?;
        let ifindex = nix::net::if_::if_nametoindex(link).context("the link is gone")?;
        Ok(Self { ifindex, mac, jobs })
    }

    /// Runs `job` in the pod; threads and processes that it starts are there too.
    fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs
            .send(job)
            .map_err(|_gone| anyhow!("the pod's thread ended"))?;
        result.recv().context("the job panicked")?
    }
}

fn connect_often() -> Result<()> {
    for _ in 0..CONNECTIONS_EACH {
        let mut stream =
            TcpStream::connect_timeout(&(SERVER, TCP_PORT).into(), PATIENCE).context("cannot connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x").context("cannot ask")?;
        stream.read_exact(&mut [0]).context("cannot hear the answer")?;
    }
    Ok(())
}

/// Starts the threads that answer until they are told to stop.
fn answer(stop: &Arc<AtomicBool>) -> Result<Vec<JoinHandle<Result<()>>>> {
    let listener = TcpListener::bind((SERVER, TCP_PORT)).context("cannot listen")?;
    // Accepting honours the timeout of receiving.
    let wait = TimeVal::milliseconds(LOOK_EVERY_MS.into());
    setsockopt(&listener, sockopt::ReceiveTimeout, &wait).context("cannot set a timeout")?;
    let mut threads = Vec::new();
    for _ in 0..SERVERS {
        let (listener, stop) = (listener.try_clone()?, Arc::clone(stop));
        threads.push(thread::spawn(move || {
            answer_each(&stop, || {
                let (mut stream, _) = listener.accept()?;
                let mut byte = [0];
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)
            })
        }));
    }
    let socket = UdpSocket::bind((SERVER, UDP_PORT)).context("cannot bind")?;
    socket.set_read_timeout(Some(Duration::from_millis(LOOK_EVERY_MS.into())))?;
    let stop = Arc::clone(stop);
    threads.push(thread::spawn(move || {
        answer_each(&stop, || {
            let mut byte = [0];
            let (_, from) = socket.recv_from(&mut byte)?;
            socket.send_to(&byte, from).map(drop)
        })
    }));
    Ok(threads)
}

fn answer_each(stop: &AtomicBool, mut one: impl FnMut() -> std::io::Result<()>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match one() {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("cannot answer"),
        }
    }
    Ok(())
}

/// Runs `ip` in the thread's network namespace.
pub(crate) fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .context("cannot start ip")?;
    if !output.status.success() {
        bail!("`ip {words}`: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Gives `text` to a program that reads standard input, such as `nft -f -`.
pub(crate) fn feed(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(text.as_bytes())
        .with_context(|| format!("cannot write to {program}"))?;
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    ensure!(status.success(), "{program} {arguments:?} failed: {status}");
    Ok(())
}
