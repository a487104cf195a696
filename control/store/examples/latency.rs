//! Write latency and throughput of the embedded store on this machine's disk:
//! `cargo run --release -p control-store --example latency [DIRECTORY]`.

use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};

use control_store::{Change, Embedded, Expected, Keyring, ObjectKey, Store};

const VALUE: [u8; 3000] = [b'x'; 3000];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let store = Arc::new(Embedded::open(
        &dir.path().join("store.redb"),
        Keyring::ephemeral()?,
    )?);
    for writers in [1usize, 8, 64] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|writer| tokio::spawn(write_many(Arc::clone(&store), writers, writer)))
            .collect();
        let mut micros = Vec::new();
        for task in tasks {
            micros.extend(task.await?);
        }
        micros.sort_unstable();
        let at = |percent: usize| {
            micros
                .get(micros.len() * percent / 100)
                .copied()
                .unwrap_or_default()
        };
        let per_second = micros.len() as f64 / start.elapsed().as_secs_f64();
        report(&format!(
            "{writers:3} writers, 3000-byte values: p50 {} us, p99 {} us, {per_second:.0} durable writes/s",
            at(50),
            at(99)
        ));
    }
    Ok(())
}

async fn write_many(store: Arc<Embedded>, writers: usize, writer: usize) -> Vec<u128> {
    let mut micros = Vec::new();
    for n in 0..100 {
        let key = ObjectKey::new("core/pods", "bench", format!("{writers}-{writer}-{n}"));
        let start = Instant::now();
        let change = Change::Put {
            uid: "u".to_owned(),
            value: VALUE.to_vec(),
        };
        if store.write(&key, Expected::Absent, change).await.is_ok() {
            micros.push(start.elapsed().as_micros());
        }
    }
    micros
}

#[expect(clippy::print_stdout, reason = "the numbers are the output")]
fn report(line: &str) {
    println!("{line}");
}
