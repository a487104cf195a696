//! A slow line to a server on this machine, for what is to be seen while a transfer lasts.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// How long one piece of an answer is under way.
const PIECE_TAKES: Duration = Duration::from_millis(20);

/// Connections to [`SlowLine::address`] go on to the server; what it answers, on all of them together, is slow. No new
/// ones are taken once it is dropped.
#[derive(Debug)]
pub struct SlowLine {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl SlowLine {
    /// A line to `server`, such as `127.0.0.1:5000`.
    pub fn to(server: &str, bytes_per_second: usize) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
        let address = listener.local_addr().context("no address")?;
        let ended = Arc::new(AtomicBool::new(false));
        let (told, server) = (Arc::clone(&ended), server.to_owned());
        let line = Arc::new(Mutex::new(()));
        let piece = bytes_per_second / 50;
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                // A client whose server is gone sees a connection that is closed at once.
                if let Ok(server) = TcpStream::connect(&server) {
                    drop(join(client, server, piece, &line));
                }
            }
        });
        Ok(Self { address, ended })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that takes connections.
        drop(TcpStream::connect(self.address));
    }
}

/// Both directions of a connection, each until its sender ends it.
fn join(client: TcpStream, server: TcpStream, piece: usize, line: &Arc<Mutex<()>>) -> std::io::Result<()> {
    let (from_client, to_client) = (client.try_clone()?, client);
    let (from_server, to_server) = (server.try_clone()?, server);
    let line = Arc::clone(line);
    thread::spawn(move || pass(from_client, to_server, 64 << 10, || ()));
    thread::spawn(move || {
        pass(from_server, to_client, piece, || {
            let _one_piece_at_a_time = line.lock().unwrap_or_else(PoisonError::into_inner);
            thread::park_timeout(PIECE_TAKES);
        });
    });
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, piece: usize, wait: impl Fn()) {
    let mut buffer = vec![0; piece.max(1)];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        wait();
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    drop(to.shutdown(Shutdown::Write));
    drop(from.shutdown(Shutdown::Read));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn all_arrives_and_not_at_once() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let line = SlowLine::to(&listener.local_addr().unwrap().to_string(), 500_000).unwrap();
        thread::spawn(move || listener.accept().unwrap().0.write_all(&[7; 100_000]));
        let begun = Instant::now();
        let mut all = Vec::new();
        TcpStream::connect(line.address())
            .unwrap()
            .read_to_end(&mut all)
            .unwrap();
        assert_eq!(all, [7; 100_000]);
        assert!(
            begun.elapsed() >= Duration::from_millis(190),
            "{:?}",
            begun.elapsed()
        );
    }
}
