//! Asks the upstream resolvers: by UDP from a fresh port under a random identifier, by TCP when the answer is cut or
//! somebody is guessing the identifier. A question that is being asked is not asked twice (RFC 5452, section 5): each
//! one more would be one more chance for whoever guesses.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use crate::message::{self, Answer, Asked, BadAnswer, MAX_UDP_BYTES, Question};

/// How long one upstream may take, and how often the list is gone through.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// Packets of the upstream that answer something else, after which nothing is believed that comes by UDP. One or two are
/// late answers to who had the port before.
const MAX_STRANGE: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("the node has no upstream resolver; name one in the agent's configuration, dns_upstreams")]
    NoUpstream,
    #[error("no randomness for the question's identifier")]
    Random,
    #[error("the question cannot be written")]
    Write,
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
    #[error("cannot talk to it")]
    Io(#[from] std::io::Error),
    #[error("its answer is not passed on")]
    Bad(#[from] BadAnswer),
    #[error("{MAX_STRANGE} packets in its name answer something else")]
    Strange,
}

/// What an upstream says, as it said it and as we read it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) packet: Vec<u8>,
    pub(crate) answer: Answer,
}

type Asking = BoxFuture<'static, Result<Arc<Reply>, Arc<UpstreamError>>>;

/// Who is asked, and what is being asked.
#[derive(Clone)]
pub(crate) struct Upstreams {
    addresses: Arc<[SocketAddr]>,
    under_way: Arc<Mutex<HashMap<Asked, WeakShared<Asking>>>>,
}

impl Upstreams {
    /// These, in turn.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: addresses.into(),
            under_way: Arc::default(),
        }
    }

    /// What the first says that answers. Who asks what somebody else is waiting for waits for the same answer.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Arc<Reply>, Arc<UpstreamError>> {
        self.asking(question).await
    }

    fn asking(&self, question: &Question) -> Shared<Asking> {
        let asked = question.asked();
        let mut under_way = self.lock();
        if let Some(asking) = under_way.get(&asked).and_then(WeakShared::upgrade) {
            return asking;
        }
        let (all, question, key) = (self.clone(), question.clone(), asked.clone());
        let answered = async move {
            let reply = in_turn(&question, &all.addresses).await;
            all.lock().remove(&key);
            reply.map(Arc::new).map_err(Arc::new)
        };
        let asking = answered.boxed().shared();
        // None for what is answered already, which this is not.
        under_way.extend(asking.downgrade().map(|weak| (asked, weak)));
        asking
    }

    /// Each change leaves the table whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<Asked, WeakShared<Asking>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks one upstream after the other until one answers.
async fn in_turn(question: &Question, upstreams: &[SocketAddr]) -> Result<Reply, UpstreamError> {
    let mut last = UpstreamError::NoUpstream;
    for _ in 0..ROUNDS {
        for upstream in upstreams {
            let asked = tokio::time::timeout(PATIENCE, ask_one(question, *upstream)).await;
            match asked.unwrap_or(Err(UpstreamError::Timeout)) {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    tracing::debug!(%upstream, error = %error, "an upstream resolver failed");
                    last = error;
                }
            }
        }
    }
    Err(last)
}

async fn ask_one(question: &Question, upstream: SocketAddr) -> Result<Reply, UpstreamError> {
    let id = random_id()?;
    let packet = question.to_upstream(id).ok_or(UpstreamError::Write)?;
    match by_udp(&packet, id, question, upstream).await {
        Ok(reply) if message::is_truncated(&reply.packet) => {}
        Err(error @ UpstreamError::Strange) => {
            tracing::warn!(name = %question.name(), %upstream, "{error}: it is asked by TCP");
        }
        otherwise => return otherwise,
    }
    by_tcp(&packet, id, question, upstream).await
}

/// The socket is new, so its port is random, and connected, so the kernel takes packets of the upstream only.
async fn by_udp(
    packet: &[u8],
    id: u16,
    question: &Question,
    upstream: SocketAddr,
) -> Result<Reply, UpstreamError> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(packet).await?;
    let mut buffer = [0; MAX_UDP_BYTES as usize];
    for _ in 0..MAX_STRANGE {
        let length = socket.recv(&mut buffer).await?;
        let packet = buffer.get(..length).unwrap_or_default();
        if message::answer_id(packet) != Some(id) {
            continue;
        }
        match question.read_answer(packet) {
            Ok(answer) => {
                return Ok(Reply {
                    packet: packet.to_vec(),
                    answer,
                });
            }
            // A cut answer may end anywhere.
            Err(BadAnswer::Malformed) if message::is_truncated(packet) => {
                return Ok(Reply {
                    packet: packet.to_vec(),
                    answer: Answer::default(),
                });
            }
            Err(BadAnswer::OtherQuestion) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(UpstreamError::Strange)
}

async fn by_tcp(
    packet: &[u8],
    id: u16,
    question: &Question,
    upstream: SocketAddr,
) -> Result<Reply, UpstreamError> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(packet.len()).map_err(|_too_long| UpstreamError::Write)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(packet).await?;
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    if message::answer_id(&packet) != Some(id) {
        return Err(BadAnswer::OtherQuestion.into());
    }
    let answer = question.read_answer(&packet)?;
    Ok(Reply { packet, answer })
}

fn random_id() -> Result<u16, UpstreamError> {
    let mut id = [0; 2];
    SystemRandom::new()
        .fill(&mut id)
        .map_err(|_unspecified| UpstreamError::Random)?;
    Ok(u16::from_be_bytes(id))
}
