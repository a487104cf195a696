//! A machine outside of the cluster: a network namespace behind a link of the host.

use std::{
    fs::File,
    io::Write as _,
    net::{Shutdown, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::shell::{eventually, run};

/// Interface of the host.
pub(crate) const LINK: &str = "e2ewire0";
/// Its address, and the one behind it: RFC 5737 keeps them for documents, so no cluster and no machine has them.
pub(crate) const HOST: &str = "203.0.113.9";
pub(crate) const BEHIND: &str = "203.0.113.10";
/// What the machine behind the link answers.
pub(crate) const WELCOME: &str = "welcome";
/// How long a packet that nobody answers is waited for.
const SILENCE: &str = "2";
const PATIENCE: Duration = Duration::from_secs(40);

/// A link between the host and a network namespace, which lives for as long as its process does.
pub(crate) struct Wire {
    behind: Child,
}

impl Wire {
    pub(crate) fn new() -> Result<Self> {
        let mut behind = Command::new("unshare");
        let behind = behind
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn();
        let wire = Self {
            behind: behind.context("cannot start unshare")?,
        };
        let pid = wire.behind.id();
        let own = std::fs::read_link("/proc/self/ns/net")?;
        eventually(PATIENCE, || {
            let other = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
            ensure!(other != own, "process {pid} is still in the host's namespace");
            Ok(())
        })?;
        let pid = pid.to_string();
        let ip = |arguments: &[&str]| run(Path::new("ip"), arguments)?.ok();
        ip(&[
            "link", "add", LINK, "type", "veth", "peer", "name", "wire", "netns", &pid,
        ])?;
        ip(&["address", "add", &format!("{HOST}/30"), "dev", LINK])?;
        ip(&["link", "set", LINK, "up"])?;
        wire.inside(&["ip", "address", "add", &format!("{BEHIND}/30"), "dev", "wire"])?
            .ok()?;
        wire.inside(&["ip", "link", "set", "wire", "up"])?.ok()?;
        Ok(wire)
    }

    pub(crate) fn inside(&self, command: &[&str]) -> Result<e2e::shell::Ran> {
        let pid = self.behind.id().to_string();
        let arguments = [&["--target", &pid, "--net"], command].concat();
        run(Path::new("nsenter"), &arguments)
    }

    /// Lets the link bring what is for pods.
    pub(crate) fn forwards(&self) -> Result<()> {
        let setting = format!("/proc/sys/net/ipv4/conf/{LINK}/forwarding");
        std::fs::write(&setting, "1").with_context(|| format!("cannot write {setting}"))
    }

    /// Lets in whoever comes to a port of the machine behind the link, for as long as the test's process lives.
    pub(crate) fn welcomes(&self, port: u16) -> Result<()> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.behind.id()))?;
        let listening = std::thread::spawn(move || -> Result<TcpListener> {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind((BEHIND, port))?)
        });
        let listening = listening
            .join()
            .map_err(|_panicked| anyhow::anyhow!("cannot go behind the link"))?;
        let listener = listening.context("cannot listen behind the link")?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever has gone again needs no welcome; whoever asks first is heard out, or the answer might be lost to a reset.
                drop(stream.and_then(|mut stream| {
                    stream.write_all(WELCOME.as_bytes())?;
                    stream.shutdown(Shutdown::Write)?;
                    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
                    std::io::copy(&mut stream, &mut std::io::sink())
                }));
            }
        });
        Ok(())
    }

    /// Whether a connection from behind the link comes to be. Denied means that nobody answers.
    pub(crate) fn reaches(&self, port: u16) -> Result<bool> {
        let connect = format!("exec 3<>/dev/tcp/{HOST}/{port}");
        let tried = self.inside(&["timeout", SILENCE, "bash", "-c", &connect])?;
        match tried.code {
            0 => Ok(true),
            124 => Ok(false),
            _ => bail!("neither answered nor silent: {tried}"),
        }
    }

    pub(crate) fn expect(&self, ports: &[(u16, bool)]) -> Result<()> {
        eventually(PATIENCE, || {
            for (port, open) in ports {
                ensure!(
                    self.reaches(*port)? == *open,
                    "port {port} is {}open",
                    if *open { "not " } else { "" }
                );
            }
            Ok(())
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The other end, and the namespace, go with it.
        drop(run(Path::new("ip"), &["link", "delete", LINK]));
        drop(self.behind.kill());
        drop(self.behind.wait());
    }
}
