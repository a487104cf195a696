//! The name service over real sockets on the loopback, with an upstream that the test plays.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may panic like the test itself"
)]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_resolver::{Limits, Names, Resolver, ResolverConfig, Settle};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use policies_ir::policy::DomainMatch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long the packet programs take.
const SETTLES_AFTER: Duration = Duration::from_millis(200);
const KNOWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const EVIL: Ipv4Addr = Ipv4Addr::new(6, 6, 6, 6);
/// How long an upstream takes that answers late: others ask the same meanwhile.
const LATE: Duration = Duration::from_millis(500);

/// What the upstream does with a question.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    /// Many addresses: by UDP it only says so.
    AnswersAtLength,
    /// First a forged answer under another identifier, then one to another question, then its own.
    IsImpersonated,
    /// Before its own, as many forged answers as somebody can guess.
    IsGuessedAt,
    AnswersLate,
    Refuses,
    Garbles,
}

/// An upstream on the loopback, by UDP and TCP, that notes who asked and under which identifier.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(u16, u16)>>>,
}

impl Upstream {
    fn start(manner: Manner) -> Self {
        let (udp, tcp) = both_on_one_port();
        let address = udp.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<(u16, u16)>>> = Arc::default();
        let note = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                note.lock().unwrap().push((question.metadata.id, peer.port()));
                let send = |packet: &[u8]| udp.send_to(packet, peer).map(drop).unwrap();
                match manner {
                    Manner::Answers => send(&answer(&question, &[KNOWN])),
                    Manner::AnswersLate => {
                        std::thread::park_timeout(LATE);
                        send(&answer(&question, &[KNOWN]));
                    }
                    Manner::IsGuessedAt => {
                        let mut forged = question.clone();
                        for guess in 1..=4 {
                            forged.metadata.id = question.metadata.id.wrapping_add(guess);
                            send(&answer(&forged, &[EVIL]));
                        }
                        // The guess that is right comes too late.
                        send(&answer(&question, &[EVIL]));
                    }
                    Manner::AnswersAtLength => {
                        let mut cut = reply(&question);
                        cut.metadata.truncation = true;
                        send(&cut.to_vec().unwrap());
                    }
                    Manner::IsImpersonated => {
                        let evil = [EVIL];
                        let mut forged = question.clone();
                        forged.metadata.id = forged.metadata.id.wrapping_add(1);
                        send(&answer(&forged, &evil));
                        let mut other = question.clone();
                        other.queries[0].name = Name::from_ascii("other.example.test.").unwrap();
                        send(&answer(&other, &evil));
                        send(&answer(&question, &[KNOWN]));
                    }
                    Manner::Refuses => {
                        let mut refused = reply(&question);
                        refused.metadata.response_code = ResponseCode::Refused;
                        send(&refused.to_vec().unwrap());
                    }
                    Manner::Garbles => {
                        let mut garbled = answer(&question, &[KNOWN]);
                        garbled.truncate(20);
                        send(&garbled);
                    }
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let question = Message::from_vec(&framed(&mut stream)).unwrap();
                let many: Vec<Ipv4Addr> = (1..=200).map(|i| Ipv4Addr::new(198, 51, 100, i)).collect();
                let packet = answer(&question, &many);
                stream
                    .write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes())
                    .unwrap();
                stream.write_all(&packet).unwrap();
            }
        });
        Self { address, asked }
    }
}

/// The kernel chooses a port that is free for one of them; the other may be somebody else's.
fn both_on_one_port() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both");
}

fn reply(question: &Message) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.add_queries(question.queries.clone());
    message
}

fn answer(question: &Message, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut message = reply(question);
    let name = &question.queries[0].name;
    message.add_answers(
        addresses
            .iter()
            .map(|address| Record::from_rdata(name.clone(), 60, RData::A(A(*address)))),
    );
    message.to_vec().unwrap()
}

fn framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet).unwrap();
    packet
}

/// The name service as a pod sees it.
struct Service {
    listen: SocketAddr,
    names: Arc<Names>,
    settled: Arc<AtomicBool>,
    /// Whether the packet programs take no names.
    stuck: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
}

impl Service {
    fn start(upstreams: &[SocketAddr], clients: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let names = Arc::new(Names::new(Limits::default()));
        names.want([DomainMatch::parse("*.example.test").unwrap()].into());
        let settled = Arc::new(AtomicBool::new(false));
        let stuck = Arc::new(AtomicBool::new(false));
        let (note, refuse, seen) = (settled.clone(), stuck.clone(), names.clone());
        let settle: Settle = Arc::new(move || {
            let (note, refuse, seen) = (note.clone(), refuse.clone(), seen.clone());
            Box::pin(async move {
                assert!(!seen.current().is_empty(), "learned before it is waited for");
                if refuse.load(Ordering::SeqCst) {
                    return Err("stuck".to_owned());
                }
                tokio::time::sleep(SETTLES_AFTER).await;
                note.store(true, Ordering::SeqCst);
                Ok(())
            })
        });
        let guard = runtime.enter();
        let start = |listen| {
            let config = ResolverConfig {
                listen,
                upstreams: upstreams.to_vec(),
                clients: vec![clients.parse().unwrap()],
            };
            Resolver::start(config, names.clone(), settle.clone(), CancellationToken::new())
        };
        // Between the choice and the start somebody else may take the port.
        let listen = (0..100).find_map(|_| {
            let listen = both_on_one_port().0.local_addr().unwrap();
            start(listen).is_ok().then_some(listen)
        });
        drop(guard);
        Self {
            listen: listen.unwrap(),
            names,
            settled,
            stuck,
            _runtime: runtime,
        }
    }

    fn ask(&self, name: &str) -> std::io::Result<Message> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&question(name), self.listen)?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        Ok(Message::from_vec(&buffer[..length]).unwrap())
    }

    fn ask_by_tcp(&self, name: &str) -> Message {
        ask_on(&mut TcpStream::connect(self.listen).unwrap(), name)
    }

    fn knows(&self, address: Ipv4Addr) -> bool {
        self.names.current().contains_key(&IpAddr::V4(address))
    }
}

fn ask_on(stream: &mut TcpStream, name: &str) -> Message {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let packet = question(name);
    stream
        .write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&packet).unwrap();
    Message::from_vec(&framed(stream)).unwrap()
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

#[test]
fn the_answer_comes_after_policy_knows_it() {
    let upstream = Upstream::start(Manner::Answers);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let answer = service.ask("www.example.test.").unwrap();
    assert!(
        service.settled.load(Ordering::SeqCst),
        "the answer came before policy"
    );
    assert_eq!((answer.metadata.id, answer.answers.len()), (4711, 1));
    assert!(service.knows(KNOWN));

    // What is known already and what nobody wants to know waits for nothing.
    service.settled.store(false, Ordering::SeqCst);
    service.ask("www.example.test.").unwrap();
    assert_eq!(service.ask("www.other.test.").unwrap().answers.len(), 1);
    assert!(!service.settled.load(Ordering::SeqCst));
    assert_eq!(service.names.current()[&IpAddr::V4(KNOWN)].len(), 1);

    let asked = upstream.asked.lock().unwrap().clone();
    let ids: std::collections::BTreeSet<u16> = asked.iter().map(|(id, _)| *id).collect();
    let ports: std::collections::BTreeSet<u16> = asked.iter().map(|(_, port)| *port).collect();
    assert!(ids.len() > 1 && ports.len() > 1, "predictable: {asked:?}");
}

#[test]
fn who_asks_while_policy_does_not_know_it_yet_waits_too() {
    let upstream = Upstream::start(Manner::Answers);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| service.ask("www.example.test.").unwrap());
        let waited = std::time::Instant::now();
        while !service.knows(KNOWN) && waited.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let second = service.ask("www.example.test.").unwrap();
        assert!(
            service.settled.load(Ordering::SeqCst),
            "the second answer came before policy"
        );
        assert_eq!(second.answers.len(), 1);
        assert_eq!(first.join().unwrap().answers.len(), 1);
    });
}

#[test]
fn an_answer_that_policy_did_not_take_is_waited_for_again() {
    let upstream = Upstream::start(Manner::Answers);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    service.stuck.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let failed = service.ask("www.example.test.").unwrap();
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    }
    service.stuck.store(false, Ordering::SeqCst);
    assert_eq!(service.ask("www.example.test.").unwrap().answers.len(), 1);
    assert!(
        service.settled.load(Ordering::SeqCst),
        "the retry came before policy"
    );
}

#[test]
fn a_long_answer_comes_by_tcp() {
    let upstream = Upstream::start(Manner::AnswersAtLength);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let by_udp = service.ask("big.example.test.").unwrap();
    assert!(by_udp.metadata.truncation && by_udp.answers.is_empty());
    let by_tcp = service.ask_by_tcp("big.example.test.");
    assert_eq!(by_tcp.answers.len(), 200);
    assert!(service.knows(Ipv4Addr::new(198, 51, 100, 200)));
}

#[test]
fn forged_answers_are_not_believed() {
    let upstream = Upstream::start(Manner::IsImpersonated);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let answer = service.ask("www.example.test.").unwrap();
    assert_eq!(answer.answers[0].data, RData::A(A(KNOWN)));
    assert!(!service.knows(EVIL));
}

#[test]
fn who_guesses_at_identifiers_gets_three_guesses() {
    let upstream = Upstream::start(Manner::IsGuessedAt);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let answer = service.ask_by_tcp("www.example.test.");
    assert_eq!(answer.answers.len(), 200, "asked by TCP");
    assert!(!service.knows(EVIL) && service.knows(Ipv4Addr::new(198, 51, 100, 200)));
}

#[test]
fn what_is_being_asked_is_asked_once_and_answered_to_all() {
    let upstream = Upstream::start(Manner::AnswersLate);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    std::thread::scope(|scope| {
        let names = ["www.example.test.", "WWW.example.test.", "www.EXAMPLE.test."];
        let service = &service;
        let asked = names.map(|name| scope.spawn(move || (name, service.ask(name).unwrap())));
        for pod in asked {
            let (name, answer) = pod.join().unwrap();
            assert_eq!(answer.answers[0].data, RData::A(A(KNOWN)), "{name}");
            assert_eq!(answer.queries[0].name.to_ascii(), name);
        }
    });
    assert_eq!(upstream.asked.lock().unwrap().len(), 1);
    // What was answered is asked anew: nothing is kept.
    service.ask("www.example.test.").unwrap();
    assert_eq!(upstream.asked.lock().unwrap().len(), 2);
}

#[test]
fn the_next_upstream_answers_for_one_that_garbles() {
    let (bad, good) = (Upstream::start(Manner::Garbles), Upstream::start(Manner::Answers));
    let service = Service::start(&[bad.address, good.address], "127.0.0.0/8");
    assert_eq!(service.ask("www.example.test.").unwrap().answers.len(), 1);
    assert_eq!(bad.asked.lock().unwrap().len(), 1);
}

#[test]
fn no_upstream_is_servfail_and_a_refusal_is_passed_on() {
    let nobody = Service::start(&[], "127.0.0.0/8");
    let failed = nobody.ask("www.example.test.").unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    // An upstream that is the service itself would ask forever.
    let probe = Service::start(&[], "127.0.0.0/8");
    let circular = Service::start(&[probe.listen], "127.0.0.0/8");
    let failed = circular.ask("www.example.test.").unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    let upstream = Upstream::start(Manner::Refuses);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let refused = service.ask("www.example.test.").unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
}

/// Connections that ask nothing are no questions: whoever holds many is answered all the same, and goes on to be by each of them.
#[test]
fn idle_connections_take_nobodys_place() {
    let upstream = Upstream::start(Manner::Answers);
    let service = Service::start(&[upstream.address], "127.0.0.0/8");
    let mut idle: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(service.listen).unwrap())
        .collect();
    // The last is accepted after all others.
    let last = idle.last_mut().unwrap();
    assert_eq!(ask_on(last, "www.other.test.").answers.len(), 1);
    assert_eq!(service.ask("www.other.test.").unwrap().answers.len(), 1);
    assert_eq!(ask_on(&mut idle[0], "www.other.test.").answers.len(), 1);
    // One more than a pod may have is closed.
    let mut more = TcpStream::connect(service.listen).unwrap();
    more.set_read_timeout(Some(PATIENCE)).unwrap();
    match more.read(&mut [0; 1]) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn only_pods_are_served() {
    let upstream = Upstream::start(Manner::Answers);
    let service = Service::start(&[upstream.address], "10.88.0.0/24");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
        .send_to(&question("www.example.test."), service.listen)
        .unwrap();
    assert!(socket.recv(&mut [0; 512]).is_err());
    assert!(upstream.asked.lock().unwrap().is_empty());
}
