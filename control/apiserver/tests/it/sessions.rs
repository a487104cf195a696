//! Sessions in every protocol, against an agent that speaks frames and does what the command or the port says.

use std::{collections::BTreeMap, path::Path, time::Duration};

use api::session::{self, Action, Channel, Outcome};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use control_pki::tls::{ClientCertificate, Credentials, peer, server_config};
use control_streams::spdy::{
    Headers,
    encode::{self, Encoder},
};
use futures::{SinkExt as _, StreamExt as _};
use http::Method;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    agent_hop::register,
    harness::{Client, Cluster},
};

const EXEC: &str =
    "/api/v1/namespaces/default/pods/p/exec?command=run&command=a+word&stdin=true&stdout=true&stderr=true";
const ATTACH: &str = "/api/v1/namespaces/default/pods/p/attach?stdin=true&stdout=true";
const FORWARD: &str = "/api/v1/namespaces/default/pods/p/portforward";
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent. A program says its command and the sizes of its terminal on standard error, repeats its input, and ends with
/// code 5 at the end of input or at the line `quit`. Port 1 refuses, others repeat.
async fn agent(tls_dir: &Path) -> u16 {
    let credentials = Credentials::load(tls_dir, "server").unwrap();
    let tls = server_config(&credentials, ClientCertificate::Required, &[b"http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(tls);
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let user = peer(stream.get_ref().1).unwrap().unwrap().identity().user.clone();
                assert_eq!(user, api::annotations::USER_APISERVER);
                let head = read_head(&mut stream).await;
                assert!(head.starts_with("POST /session HTTP/1.1\r\n"), "{head}");
                let value = |name: &str| {
                    let line = head.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap().trim().to_owned()
                };
                assert_eq!(value("upgrade:"), session::PROTOCOL);
                let wanted = URL_SAFE_NO_PAD.decode(value("palisade-session:")).unwrap();
                let wanted: session::Request = serde_json::from_slice(&wanted).unwrap();
                assert_eq!((wanted.namespace.as_str(), wanted.pod.as_str()), ("default", "p"));
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {}\r\n\r\n",
                    session::PROTOCOL
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                act(wanted.action, stream).await;
            });
        }
    });
    port
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn act(action: Action, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    match action {
        Action::Exec { command, .. } => {
            send(&mut stream, Channel::Stderr, command.join("|").as_bytes()).await;
        }
        Action::Forward { port: 1 } => {
            let refused = Outcome::Failed {
                message: "nothing listens".to_owned(),
            };
            return send(
                &mut stream,
                Channel::Outcome,
                &serde_json::to_vec(&refused).unwrap(),
            )
            .await;
        }
        Action::Forward { .. } | Action::Attach { .. } => {}
    }
    let mut quit = false;
    while !quit {
        let mut head = [0; session::HEAD];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let (channel, length) = session::parse_head(head).unwrap();
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        match channel {
            Channel::Stdin => {
                quit = payload.ends_with(b"quit\n");
                send(&mut stream, Channel::Stdout, &payload).await;
            }
            Channel::Resize => {
                let size = format!("{:?}", session::parse_resize(&payload).unwrap());
                send(&mut stream, Channel::Stderr, size.as_bytes()).await;
            }
            Channel::Close => quit = true,
            Channel::Alive => {}
            other => panic!("{other:?}"),
        }
    }
    let outcome = serde_json::to_vec(&Outcome::Exited { code: 5 }).unwrap();
    send(&mut stream, Channel::Outcome, &outcome).await;
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), channel: Channel, payload: &[u8]) {
    let head = session::head(channel, payload.len()).unwrap();
    // Whoever hung up is not interested.
    let _gone = stream.write_all(&[head.as_slice(), payload].concat()).await;
}

async fn with_agent() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    register(&admin, agent(&cluster.path("agent/tls")).await).await;
    (cluster, admin)
}

async fn websocket(client: &Client, path: &str, protocol: &str) -> WebSocketStream<TokioIo<Upgraded>> {
    let mut headers = vec![
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    if !protocol.is_empty() {
        headers.push(("sec-websocket-protocol", protocol));
    }
    let (head, connection) = client.upgrade(Method::GET, path, &headers).await;
    let connection = connection.unwrap_or_else(|| panic!("{protocol:?}: {head:?}"));
    let agreed = head.headers().get("sec-websocket-protocol");
    assert_eq!(agreed.map_or("", |name| name.to_str().unwrap()), protocol);
    WebSocketStream::from_raw_socket(connection, Role::Client, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_channels_carries_a_program() {
    let (_cluster, admin) = with_agent().await;
    for (name, base64, status) in [
        ("v5.channel.k8s.io", false, true),
        ("v4.channel.k8s.io", false, true),
        ("v4.base64.channel.k8s.io", true, true),
        ("channel.k8s.io", false, false),
        ("base64.channel.k8s.io", true, false),
        ("", false, false),
    ] {
        let mut socket = websocket(&admin, EXEC, name).await;
        let message = |channel: u8, text: &str| match base64 {
            true => Message::text(format!("{channel}{}", STANDARD.encode(text))),
            false => Message::binary([&[channel], text.as_bytes()].concat()),
        };
        socket.send(message(0, "hello ")).await.unwrap();
        match name {
            "v5.channel.k8s.io" => socket.send(Message::binary(vec![255, 0])).await.unwrap(),
            // Before version 5 input has no end.
            _ => socket.send(message(0, "quit\n")).await.unwrap(),
        }
        let mut seen: BTreeMap<u8, String> = BTreeMap::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
            let (channel, bytes) = match next.unwrap().unwrap() {
                Message::Binary(bytes) if !base64 => (bytes[0], bytes[1..].to_vec()),
                Message::Text(text) if base64 => {
                    let (channel, rest) = text.split_at(1);
                    (channel.parse().unwrap(), STANDARD.decode(rest).unwrap())
                }
                Message::Close(_) => break,
                other => panic!("{name}: {other:?}"),
            };
            seen.entry(channel)
                .or_default()
                .push_str(&String::from_utf8(bytes).unwrap());
        }
        let input = if name.starts_with("v5") {
            "hello "
        } else {
            "hello quit\n"
        };
        assert_eq!(seen[&1], input, "{name}");
        assert_eq!(seen[&2], "run|a word", "{name}");
        if status {
            let outcome: Value = serde_json::from_str(&seen[&3]).unwrap();
            assert_eq!(
                outcome["details"]["causes"],
                json!([{"reason": "ExitCode", "message": "5"}])
            );
        } else {
            assert!(seen[&3].contains("exit code 5"), "{name}: {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_break_the_rules_are_cut_off() {
    let (_cluster, admin) = with_agent().await;
    let long = vec![0; 300 * 1024];
    for wrong in [
        Message::binary(vec![7, 1]),
        Message::text("0aGk="),
        Message::binary(long),
    ] {
        let mut socket = websocket(&admin, EXEC, "v4.channel.k8s.io").await;
        let _cut_while_writing = socket.send(wrong).await;
        let cut = async { while let Some(Ok(_)) = socket.next().await {} };
        tokio::time::timeout(PATIENCE, cut).await.expect("cut off");
    }
    for path in [EXEC, FORWARD] {
        for headers in [
            &[][..],
            &[("upgrade", "SPDY/3.1")],
            &[("upgrade", "websocket"), ("sec-websocket-version", "13")],
        ] {
            let (head, connection) = admin.upgrade(Method::GET, path, headers).await;
            assert!(connection.is_none());
            assert_eq!(head.status(), 400, "{headers:?}");
        }
    }
}

/// A client of SPDY.
struct Spdy<S> {
    stream: S,
    encoder: Encoder,
    next: u32,
}

/// What a server sends.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
    Pong(u32),
    GoAway,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Spdy<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            encoder: Encoder::new(),
            next: 1,
        }
    }

    async fn open(&mut self, headers: Headers) -> u32 {
        let stream = self.next;
        self.next += 2;
        let frame = self.encoder.open(stream, &headers);
        self.stream.write_all(&frame).await.unwrap();
        assert_eq!(self.frame().await, Frame::Reply(stream));
        stream
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let head = encode::data_head(stream, bytes.len(), fin);
        self.stream
            .write_all(&[head.as_slice(), bytes].concat())
            .await
            .unwrap();
    }

    async fn frame(&mut self) -> Frame {
        let read = async {
            let mut head = [0; 8];
            self.stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
            if head[0] & 0x80 == 0 {
                return Frame::Data(number(&head), payload, head[4] & 1 == 1);
            }
            match head[3] {
                2 => Frame::Reply(number(&payload)),
                3 => Frame::Reset(number(&payload)),
                6 => Frame::Pong(number(&payload)),
                7 => Frame::GoAway,
                other => panic!("control frame {other}"),
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }

    /// All data until `streams` have ended.
    async fn until_ended(&mut self, streams: &[u32]) -> BTreeMap<u32, String> {
        let mut seen: BTreeMap<u32, String> = BTreeMap::new();
        let mut left: Vec<u32> = streams.to_vec();
        while !left.is_empty() {
            match self.frame().await {
                Frame::Data(stream, bytes, fin) => {
                    seen.entry(stream)
                        .or_default()
                        .push_str(&String::from_utf8(bytes).unwrap());
                    left.retain(|other| !fin || *other != stream);
                }
                other => panic!("{other:?}"),
            }
        }
        seen
    }
}

async fn spdy(client: &Client, path: &str, version: &str) -> Spdy<TokioIo<Upgraded>> {
    let headers = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", version)];
    let (head, connection) = client.upgrade(Method::POST, path, &headers).await;
    let connection = connection.unwrap_or_else(|| panic!("{head:?}"));
    assert_eq!(head.headers()["x-stream-protocol-version"], version);
    Spdy::new(connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn spdy_carries_a_program() {
    let (_cluster, admin) = with_agent().await;
    let mut client = spdy(&admin, &format!("{EXEC}&tty=true"), "v4.channel.k8s.io").await;
    let kind = |name: &str| Headers::of([("streamType", name)]);
    let error = client.open(kind("error")).await;
    let stdin = client.open(kind("stdin")).await;
    let stdout = client.open(kind("stdout")).await;
    let resize = client.open(kind("resize")).await;
    client.stream.write_all(&encode::ping(9)).await.unwrap();
    client
        .data(resize, b"{\"Width\":100,\"Height\":30}\n", false)
        .await;
    client.data(stdin, b"hello", false).await;
    // The answer to the ping may come before the first output.
    let mut early = Vec::new();
    while early.len() < 2 {
        match client.frame().await {
            Frame::Data(_, bytes, false) if bytes.is_empty() => {}
            other => early.push(other),
        }
    }
    assert!(early.contains(&Frame::Pong(9)), "{early:?}");
    assert!(
        early.contains(&Frame::Data(stdout, b"hello".to_vec(), false)),
        "{early:?}"
    );
    client.data(stdin, b"", true).await;
    let seen = client.until_ended(&[stdout, error]).await;
    let outcome: Value = serde_json::from_str(&seen[&error]).unwrap();
    assert_eq!(outcome["details"]["causes"][0]["message"], "5");
    assert_eq!(client.frame().await, Frame::GoAway);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_to_the_end_has_succeeded_whatever_the_program_ends_with() {
    let (_cluster, admin) = with_agent().await;
    let mut socket = websocket(&admin, ATTACH, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\0quit\n".to_vec())).await.unwrap();
    let mut told = None;
    while let Some(message) = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap() {
        match message.unwrap() {
            Message::Binary(bytes) if bytes[0] == 3 => told = Some(bytes[1..].to_vec()),
            Message::Close(_) => break,
            _ => {}
        }
    }
    let outcome: Value = serde_json::from_slice(&told.unwrap()).unwrap();
    assert_eq!(outcome, json!({"metadata": {}, "status": "Success"}));

    let mut client = spdy(&admin, ATTACH, "v4.channel.k8s.io").await;
    let kind = |name: &str| Headers::of([("streamType", name)]);
    let error = client.open(kind("error")).await;
    let stdin = client.open(kind("stdin")).await;
    let stdout = client.open(kind("stdout")).await;
    client.data(stdin, b"quit\n", false).await;
    let seen = client.until_ended(&[stdout, error]).await;
    let outcome: Value = serde_json::from_str(&seen[&error]).unwrap();
    assert_eq!(outcome["status"], "Success");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_each_by_itself() {
    let (_cluster, admin) = with_agent().await;
    let direct = spdy(&admin, FORWARD, "portforward.k8s.io").await;
    forward(direct).await;

    let mut socket = websocket(&admin, FORWARD, "SPDY/3.1+portforward.k8s.io").await;
    let (near, far) = tokio::io::duplex(1024);
    let (mut reading, mut writing) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut chunk = [0; 100];
        loop {
            tokio::select! {
                read = reading.read(&mut chunk) => match read {
                    Ok(length @ 1..) => socket.send(Message::binary(chunk[..length].to_vec())).await.unwrap(),
                    _ => return,
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => writing.write_all(&bytes).await.unwrap(),
                    _ => return,
                },
            }
        }
    });
    forward(Spdy::new(near)).await;
}

async fn forward<S: AsyncRead + AsyncWrite + Unpin>(mut client: Spdy<S>) {
    let headers = |kind: &str, port: &str, id: &str| {
        Headers::of([("streamType", kind), ("port", port), ("requestID", id)])
    };
    let mut pair = async |port: &str, id: &str| {
        let error = client.open(headers("error", port, id)).await;
        client.data(error, b"", true).await;
        (error, client.open(headers("data", port, id)).await)
    };
    let (first_error, first) = pair("80", "0").await;
    let (second_error, second) = pair("8080", "1").await;
    client.data(first, b"one", false).await;
    assert_eq!(client.frame().await, Frame::Data(first, b"one".to_vec(), false));
    // One that fails says why and takes none of the others along.
    let refused_error = client.open(headers("error", "1", "2")).await;
    let refused = client.open(headers("data", "1", "2")).await;
    let seen = client.until_ended(&[refused_error, refused]).await;
    assert!(seen[&refused_error].contains("nothing listens"), "{seen:?}");
    client.data(second, b"two", true).await;
    let seen = client.until_ended(&[second_error, second]).await;
    assert_eq!(
        (seen[&second].as_str(), seen[&second_error].as_str()),
        ("two", "")
    );
    client.data(first, b"quit\n", false).await;
    let seen = client.until_ended(&[first_error, first]).await;
    assert_eq!(seen[&first], "quit\n");
    // Streams that make no sense are refused, and the session goes on.
    for headers in [headers("data", "0", "3"), headers("odd", "80", "4")] {
        let stream = client.next;
        client.next += 2;
        let frame = client.encoder.open(stream, &headers);
        client.stream.write_all(&frame).await.unwrap();
        assert_eq!(client.frame().await, Frame::Reset(stream));
    }
    client.stream.write_all(&encode::ping(1)).await.unwrap();
    assert_eq!(client.frame().await, Frame::Pong(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_the_certificate_of_its_user() {
    let (cluster, _admin) = with_agent().await;
    let validity = Duration::from_secs(10);
    let user = cluster.user_for("jane", Some(api::annotations::GROUP_MASTERS), validity);
    let mut socket = websocket(&user, EXEC, "v5.channel.k8s.io").await;
    let mut forward = websocket(&user, FORWARD, "SPDY/3.1+portforward.k8s.io").await;
    let ends = async {
        let mut status = String::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 3 => {
                    status.push_str(std::str::from_utf8(&bytes[1..]).unwrap());
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        while let Some(Ok(message)) = forward.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
        status
    };
    let status = tokio::time::timeout(Duration::from_secs(30), ends).await;
    let status = status.expect("it goes on");
    assert!(status.contains("certificate has expired"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_pods_is_not_entering_them() {
    let (cluster, _admin) = with_agent().await;
    for who in [cluster.user("jane", None), cluster.node()] {
        for (method, path) in [(Method::GET, EXEC), (Method::POST, EXEC), (Method::GET, FORWARD)] {
            let headers = [
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            let (head, connection) = who.upgrade(method, path, &headers).await;
            assert!(connection.is_none());
            assert_eq!(head.status(), 403);
        }
    }
}
