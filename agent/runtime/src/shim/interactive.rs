//! Sessions whose streams the agent holds: the shim starts them, hands the descriptors over, and then only
//! waits for the end of the program or of the client. Attachments to a container's own streams start here too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

use crate::cgroup;
use crate::protocol::{Response, Streamed};
use crate::shim::container::{Ended, Pod};
use crate::shim::conversation::Conversation;
use crate::shim::job::Job;
use crate::shim::supervisor::Supervisor;
use crate::shim::{chain, complain, terminal};

/// Sessions of a pod at a time, those being started included.
pub(crate) const MAX_SESSIONS: usize = 32;

/// Clients attached to the containers of a pod at a time.
pub(crate) const MAX_ATTACHMENTS: usize = 32;

/// Rounds of looking for processes that a dying session still started.
const KILL_ROUNDS: usize = 16;

/// A session that is being started: what the agent will get.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Where the terminal will come from.
    pub(crate) terminal: Option<UnixStream>,
}

/// A session that runs.
#[derive(Debug)]
pub(crate) struct Interactive {
    pub(crate) pid: Pid,
    pub(crate) ended: Option<Ended>,
    cgroup: String,
    /// None once the client has gone and the session was killed.
    conversation: Option<Conversation>,
}

impl Interactive {
    /// For `poll`: readable when the client is gone.
    pub(crate) fn client(&self) -> Option<BorrowedFd<'_>> {
        self.conversation.as_ref().map(Conversation::fd)
    }

    /// False when it is over.
    fn advance(&mut self) -> bool {
        if let Some(ended) = self.ended {
            if let Some(mut conversation) = self.conversation.take() {
                let _client_may_be_gone = conversation.say(&Response::Ended { code: ended.code() });
            }
            return false;
        }
        if self.conversation.as_mut().is_some_and(Conversation::is_over) {
            self.conversation = None;
            kill_session(&self.cgroup, self.pid);
        }
        true
    }
}

impl Supervisor {
    /// Starts a program whose streams go to `client`.
    pub(crate) fn open(
        &mut self,
        client: u64,
        name: String,
        argv: &[String],
        stdin: bool,
        tty: bool,
    ) -> Result<(), String> {
        let starting = self.jobs.iter().filter(|job| job.opening.is_some()).count();
        if starting + self.interactive.len() >= MAX_SESSIONS {
            return Err(format!("the pod has {MAX_SESSIONS} sessions already"));
        }
        self.demand_room()?;
        let container = self
            .containers
            .get(&name)
            .ok_or_else(|| format!("there is no container {name}"))?;
        let (opening, creator) = container
            .open(&self.pod, argv, stdin, tty)
            .map_err(|error| chain(&error))?;
        let mut job = Job::new(name, client, creator, None);
        job.opening = Some(opening);
        self.begin(job);
        Ok(())
    }

    /// The program runs: hands its streams over.
    pub(crate) fn opened(
        &mut self,
        client: u64,
        container: &str,
        pid: Pid,
        ended: Option<Ended>,
        opening: &Opening,
    ) {
        let Some(cgroup) = self
            .containers
            .get(container)
            .map(|container| self.pod.cgroup(&container.config))
        else {
            return;
        };
        let mut session = Interactive {
            pid,
            ended,
            cgroup,
            conversation: self.clients.remove(&client),
        };
        let terminal = opening.terminal.as_ref().map(terminal::take);
        let told = match (&mut session.conversation, &terminal) {
            (Some(conversation), Some(None)) => {
                let reason = "the program was started without its terminal".to_owned();
                let _killed_below = conversation.say(&Response::Failed(reason.into()));
                false
            }
            (Some(conversation), _) => {
                let terminal = terminal.flatten();
                hand_over(
                    conversation,
                    [
                        opening.stdin.as_ref(),
                        opening.stdout.as_ref(),
                        opening.stderr.as_ref(),
                        terminal.as_ref(),
                    ],
                )
            }
            (None, _) => false,
        };
        if !told {
            session.conversation = None;
            if session.ended.is_none() {
                kill_session(&session.cgroup, pid);
            }
        }
        self.interactive.push(session);
    }

    pub(crate) fn attach(&mut self, client: u64, name: &str, stdin: bool) -> Result<(), String> {
        let attached = self.containers.values().map(|c| c.attachments().count());
        if attached.sum::<usize>() >= MAX_ATTACHMENTS {
            return Err(format!("the pod has {MAX_ATTACHMENTS} attached clients already"));
        }
        let container = self
            .containers
            .get_mut(name)
            .ok_or_else(|| format!("there is no container {name}"))?;
        let (parts, copies) = container.attach(stdin).map_err(|error| chain(&error))?;
        let Some(mut conversation) = self.clients.remove(&client) else {
            return Ok(());
        };
        let [stdin, stdout, stderr, terminal] = &parts;
        let descriptors = [stdin, stdout, stderr, terminal].map(Option::as_ref);
        if hand_over(&mut conversation, descriptors) {
            container.add_attachment(conversation, copies);
        }
        Ok(())
    }

    /// A socket in the pod's network namespace.
    pub(crate) fn socket(&mut self, client: u64, ipv6: bool) -> Result<(), String> {
        let socket = socket_of(&self.pod, ipv6)?;
        let opened = Streamed {
            socket: true,
            ..Streamed::default()
        };
        self.give(client, opened, socket.as_fd());
        Ok(())
    }

    /// The pod's network namespace: the one that the holder made, whatever became of the holder's number.
    pub(crate) fn network(&mut self, client: u64) -> Result<(), String> {
        let namespace = open_namespace(&self.pod.shared.namespaces.join("net"))?;
        let opened = Streamed {
            network: true,
            ..Streamed::default()
        };
        self.give(client, opened, namespace.as_fd());
        Ok(())
    }

    fn give(&mut self, client: u64, opened: Streamed, descriptor: BorrowedFd<'_>) {
        if let Some(mut conversation) = self.clients.remove(&client)
            && let Err(error) = conversation.hand_over(&Response::Opened(opened), &[descriptor])
        {
            complain(&format!("a descriptor is lost: {}", chain(&error)));
        }
    }

    /// Notices ends of programs and of clients.
    pub(crate) fn advance_interactive(&mut self) {
        self.interactive.retain_mut(Interactive::advance);
    }
}

/// Sends what is there. False when the client is gone.
fn hand_over(conversation: &mut Conversation, parts: [Option<&OwnedFd>; 4]) -> bool {
    let [stdin, stdout, stderr, terminal] = parts.map(|part| part.is_some());
    let opened = Response::Opened(Streamed {
        stdin,
        stdout,
        stderr,
        terminal,
        ..Streamed::default()
    });
    let descriptors: Vec<_> = parts.into_iter().flatten().map(AsFd::as_fd).collect();
    match conversation.hand_over(&opened, &descriptors) {
        Ok(()) => true,
        Err(error) => {
            complain(&format!("a session's streams are lost: {}", chain(&error)));
            false
        }
    }
}

/// Kills the leader of a session and whatever still belongs to the session. A program that made a session of its own
/// has left it, as it would have left a terminal.
fn kill_session(group: &str, leader: Pid) {
    for _ in 0..KILL_ROUNDS {
        let members = match cgroup::members(group) {
            Ok(members) => members,
            Err(error) => return complain(&chain(&error)),
        };
        let mut left = false;
        for member in members {
            // The number of a session is its leader's, and no process gets that number while the session exists.
            if nix::unistd::getsid(Some(member)) == Ok(leader) {
                left |= member != leader;
                let _may_be_dead = nix::sys::signal::kill(member, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if !left {
            return;
        }
    }
}

/// A socket belongs to the namespace it was made in, wherever it is used: only this one call happens inside.
fn socket_of(pod: &Pod, ipv6: bool) -> Result<OwnedFd, String> {
    let outside = open_namespace("/proc/self/ns/net".as_ref())?;
    let inside = open_namespace(&pod.shared.namespaces.join("net"))?;
    let enter = |namespace: &std::fs::File| nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET);
    enter(&inside).map_err(|errno| format!("cannot enter the pod's network: {errno}"))?;
    let family = if ipv6 {
        rustix::net::AddressFamily::INET6
    } else {
        rustix::net::AddressFamily::INET
    };
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None);
    // The shim uses no network itself, so that failing here would change nothing but the next socket's origin.
    enter(&outside).map_err(|errno| format!("cannot leave the pod's network: {errno}"))?;
    socket.map_err(|errno| format!("cannot make a socket in the pod: {errno}"))
}

fn open_namespace(path: &std::path::Path) -> Result<std::fs::File, String> {
    std::fs::File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))
}
