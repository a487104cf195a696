//! An upstream resolver for tests, on the node's loopback: names that a test has set, and nothing else.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};

/// The resolver. Its thread ends with the process.
pub struct Upstream {
    address: SocketAddr,
    names: Arc<Mutex<Names>>,
}

/// Addresses of names, and for how many seconds the answer holds.
type Names = BTreeMap<String, (Ipv4Addr, u32)>;

impl Upstream {
    /// Binds a free port.
    pub fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind an upstream resolver")?;
        let upstream = Self {
            address: socket.local_addr()?,
            names: Arc::default(),
        };
        let names = Arc::clone(&upstream.names);
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let answer = answer(buffer.get(..length).unwrap_or_default(), &lock(&names));
                if let Some(answer) = answer {
                    // Who no longer waits asks again.
                    drop(socket.send_to(&answer, peer));
                }
            }
        });
        Ok(upstream)
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a name, without its final dot, an address for `ttl` seconds.
    pub fn set(&self, name: &str, address: Ipv4Addr, ttl: u32) {
        lock(&self.names).insert(name.to_owned(), (address, ttl));
    }
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(packet: &[u8], names: &Names) -> Option<Vec<u8>> {
    let question = Message::from_vec(packet).ok()?;
    let query = question.queries.first()?;
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_query(query.clone());
    let name = query.name.to_lowercase().to_ascii();
    match names.get(name.trim_end_matches('.')) {
        Some((address, ttl)) if query.query_type == RecordType::A => {
            answer.add_answer(Record::from_rdata(
                query.name.clone(),
                *ttl,
                RData::A(A(*address)),
            ));
        }
        Some(_) => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().ok()
}
