//! Credentials, mirrors and downloads that break off: with a real registry, and with servers that misbehave.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use api::{
    Digest, ImageRef,
    pull_secret::{PullSecret, SecretForm},
};
use images_fetch::{Cache, FetchConfig, FetchError, Fetcher, Grant, Keyring, Limits, Progress};
use testkit::{
    image::{Image, ImageBuilder, Layer, Packing},
    registry::Registry,
};

fn fetcher(dir: &Path, hosts: Option<&Path>) -> Result<Fetcher, FetchError> {
    fetcher_with(dir, hosts, Cache::Passing)
}

fn fetcher_with(dir: &Path, hosts: Option<&Path>, cache: Cache) -> Result<Fetcher, FetchError> {
    Fetcher::new(FetchConfig {
        cache_dir: dir.join("cache"),
        layout_root: dir.join("layouts"),
        ca_files: Vec::new(),
        hosts_dir: hosts.map(Path::to_owned),
        limits: Limits::default(),
        timeout: Duration::from_secs(20),
        cache,
    })
}

fn keys(origin: &str, config: &str) -> Result<Keyring> {
    let mut keys = Keyring::anonymous();
    keys.add(&PullSecret {
        origin: origin.to_owned(),
        form: SecretForm::ConfigJson,
        content: config.as_bytes(),
    })?;
    Ok(keys)
}

/// A megabyte that does not compress.
fn noise() -> Vec<u8> {
    let mut state = 1u64;
    (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

/// An image of one layer that does not compress.
fn large_image() -> Image {
    let layer = Layer::new(Packing::Tar).file("noise", 0o644, &noise());
    ImageBuilder::new().layer(layer).build()
}

#[tokio::test]
async fn who_has_no_credentials_gets_nothing_that_others_left_here() -> Result<()> {
    let (dir, registry) = (tempfile::tempdir()?, Registry::start_private()?);
    let wanted = large_image();
    let reference = registry.push(&wanted, "team/app", "1").await?;
    let fetcher = fetcher(dir.path(), None)?;
    let nobody = Keyring::anonymous();
    let own = keys("own/1", &Registry::docker_config(registry.address()))?;
    let elsewhere = keys("else/1", &Registry::docker_config("r.example"))?;
    let other_path = keys(
        "path/1",
        &Registry::docker_config(&format!("{}/other", registry.address())),
    )?;
    let wrong = Registry::docker_config(registry.address()).replace("correct", "wrong");
    let wrong = keys("wrong/1", &wrong)?;

    let pinned = fetcher.resolve(&reference, &own).await?;
    let image = fetcher.confirm(&pinned, &own).await?;
    assert_eq!(image.grant, Some(Grant::Secret("own/1".to_owned())));
    fetcher.layer(&image, &image.layers[0], None).await?;
    for (other, says) in [
        (&nobody, "without credentials"),
        (&elsewhere, "without credentials"),
        (&other_path, "without credentials"),
        (&wrong, "with the given credentials"),
    ] {
        // All of it is here, and still it is not theirs.
        for asked in [&reference, &pinned] {
            let error = fetcher
                .resolve(asked, other)
                .await
                .err()
                .context("it was given")?;
            assert!(matches!(error, FetchError::Unauthorized { .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(fetcher.confirm(&pinned, other).await.is_err());
    }
    // Two secrets, of which the first is of no use.
    let mut both = wrong.clone();
    both.add(&PullSecret {
        origin: "own/2".to_owned(),
        form: SecretForm::ConfigJson,
        content: Registry::docker_config(registry.address()).as_bytes(),
    })?;
    fetcher.resolve(&reference, &both).await?;
    Ok(())
}

/// Takes a layer's bytes from a registry, which goes on to list it; the path and what was there.
fn take_away(registry: &Registry, image: &Image) -> Result<(std::path::PathBuf, Vec<u8>)> {
    let hex = image.layers[0].digest.hex();
    let data = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    let path = registry.store().join(data);
    let bytes = fs::read(&path)?;
    fs::remove_file(&path)?;
    Ok((path, bytes))
}

#[tokio::test]
async fn what_is_scanned_was_sent_by_who_lists_it() -> Result<()> {
    let (dir, private, open) = (
        tempfile::tempdir()?,
        Registry::start_private()?,
        Registry::start()?,
    );
    let victim = large_image();
    let reference = private
        .push(&victim, "team/app", "1")
        .await?
        .pinned(victim.digest());
    let own = keys("own/1", &Registry::docker_config(private.address()))?;
    let gate = || fetcher_with(dir.path(), None, Cache::Lasting);
    let fetcher = gate()?;
    fetcher.fetch(&reference, &own).await?;

    // Somebody who knows the digest serves a manifest that lists the layer, and does not have it.
    let layer = || Layer::new(Packing::Tar).file("noise", 0o644, &noise());
    let thief = ImageBuilder::new()
        .layer(layer())
        .container(serde_json::json!({"Cmd": ["x"]}))
        .build();
    let stolen = open.push(&thief, "evil/app", "1").await?.pinned(thief.digest());
    let (path, bytes) = take_away(&open, &thief)?;
    let nobody = Keyring::anonymous();
    assert!(
        fetcher.fetch(&stolen, &nobody).await.is_err(),
        "the private layer would be scanned"
    );
    drop(fetcher);

    // Who has sent it need not do it again, also after a restart; the others are still not believed.
    take_away(&private, &victim)?;
    let fetcher = gate()?;
    fetcher.fetch(&reference, &own).await?;
    assert!(fetcher.fetch(&stolen, &nobody).await.is_err());

    // What was sent to somebody without credentials is nobody's secret.
    fs::write(&path, bytes)?;
    fetcher.fetch(&stolen, &nobody).await?;
    let other = ImageBuilder::new()
        .layer(layer())
        .container(serde_json::json!({"Cmd": ["y"]}))
        .build();
    let shared = open.push(&other, "open/other", "1").await?.pinned(other.digest());
    take_away(&open, &other)?;
    fetcher.fetch(&shared, &nobody).await?;
    Ok(())
}

#[tokio::test]
async fn what_everybody_may_have_is_nobodys_secret() -> Result<()> {
    let (dir, registry) = (tempfile::tempdir()?, Registry::start()?);
    let reference = registry.push(&large_image(), "open/app", "1").await?;
    let fetcher = fetcher(dir.path(), None)?;
    let own = keys("own/1", &Registry::docker_config(registry.address()))?;
    let pinned = fetcher.resolve(&reference, &own).await?;
    let image = fetcher.confirm(&pinned, &own).await?;
    assert_eq!(image.grant, Some(Grant::Anyone), "the registry asked for nothing");
    Ok(())
}

/// A request to a [`serve`]d registry.
struct Request {
    /// `GET` or `HEAD`.
    method: String,
    path: String,
    /// What it shows that it may.
    authorization: Option<String>,
    /// First byte that is asked for.
    from: Option<usize>,
    if_range: Option<String>,
}

/// Answers each request with head and body, and closes the connection after it.
fn serve(answer: impl Fn(&Request) -> (String, Vec<u8>) + Send + 'static) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut request = Request {
                method: String::new(),
                path: String::new(),
                authorization: None,
                from: None,
                if_range: None,
            };
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let lower = line.to_ascii_lowercase();
                if line.is_empty() {
                    break;
                } else if line.ends_with(" HTTP/1.1") {
                    let mut words = line.split(' ').map(str::to_owned);
                    request.method = words.next().unwrap_or_default();
                    request.path = words.next().unwrap_or_default();
                } else if let Some(range) = lower.strip_prefix("range: bytes=") {
                    request.from = range.trim_end_matches('-').parse().ok();
                } else if lower.starts_with("authorization:") {
                    request.authorization = line.split_once(": ").map(|(_, shown)| shown.to_owned());
                } else if lower.starts_with("if-range:") {
                    request.if_range = line.split_once(": ").map(|(_, tag)| tag.to_owned());
                }
            }
            let (head, mut body) = answer(&request);
            if request.method == "HEAD" {
                body.clear();
            }
            // The client may be gone, which is its right.
            let _sent = (&stream)
                .write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())
                .and_then(|()| (&stream).write_all(&body));
        }
    });
    Ok(address)
}

/// First bytes that a server was asked for, in turn.
type Asked = Arc<Mutex<Vec<Option<usize>>>>;

/// How a server treats a download.
#[derive(Clone, Copy, PartialEq)]
enum Resume {
    /// Goes on where it was asked to, as long as the tag is the same.
    Well,
    /// Does not know ranges.
    Never,
    /// Has another blob of the same size by now, and does not say so.
    WithOtherBytes,
    /// Sends another range than was asked for.
    ElseWhere,
}

/// A registry that breaks off each layer after 300 KiB, and what it was asked for layers.
fn breaking(image: &Image, resume: Resume) -> Result<(String, Asked)> {
    let (image, asked) = (image.clone(), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&asked);
    let address = serve(move |request| {
        let blobs = image.blobs().chain([&image.manifest]);
        let found = blobs
            .into_iter()
            .find(|blob| request.path.ends_with(&blob.digest.to_string()));
        let Some(blob) = found else {
            return ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n".to_owned(), Vec::new());
        };
        let mut bytes = blob.bytes.clone();
        if bytes.len() < 500 << 10 {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", bytes.len());
            return (head, bytes);
        }
        log.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(request.from);
        let total = bytes.len();
        let from = match (resume, request.from) {
            (Resume::Never, _) | (_, None) => 0,
            (Resume::Well, Some(_)) if request.if_range.as_deref() != Some("\"one\"") => 0,
            (_, Some(from)) => from,
        };
        if resume == Resume::WithOtherBytes && from > 0 {
            bytes[from..].fill(b'x');
        }
        let said = if resume == Resume::ElseWhere {
            from + 1
        } else {
            from
        };
        let head = match from {
            0 => format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {total}\r\n"),
            _ => format!(
                "HTTP/1.1 206 Part\r\nETag: \"one\"\r\nContent-Range: bytes {said}-{}/{total}\r\nContent-Length: {}\r\n",
                total - 1,
                total - from
            ),
        };
        // Without ranges, a client gets through in the end only if it is let.
        let tries = log.lock().map_or(0, |log| log.len());
        let enough = match resume {
            Resume::Well => false,
            Resume::Never | Resume::ElseWhere => tries >= 3,
            Resume::WithOtherBytes => from > 0 || tries >= 3,
        };
        let until = if enough {
            total
        } else {
            total.min(from + (300 << 10))
        };
        (head, bytes[from..until].to_vec())
    })?;
    Ok((address, asked))
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() -> Result<()> {
    for resume in [
        Resume::Well,
        Resume::Never,
        Resume::WithOtherBytes,
        Resume::ElseWhere,
    ] {
        let dir = tempfile::tempdir()?;
        let wanted = large_image();
        let (address, asked) = breaking(&wanted, resume)?;
        let reference: ImageRef = format!("{address}/x@{}", wanted.digest()).parse()?;
        let fetcher = fetcher(dir.path(), None)?;
        let image = fetcher.confirm(&reference, &Keyring::anonymous()).await?;
        let progress = Progress::default();
        let layer = fetcher.layer(&image, &image.layers[0], Some(&progress)).await?;
        assert_eq!(Digest::of(&fs::read(layer)?), image.layers[0].digest);
        assert_eq!(progress.arrived(), image.layers[0].size, "each byte counts once");
        let asked = asked.lock().map(|asked| asked.clone()).unwrap_or_default();
        if resume == Resume::Well {
            let steps: Vec<_> = (1..4).map(|part| Some(part * (300 << 10))).collect();
            assert_eq!(asked, [vec![None], steps].concat());
        } else {
            assert!(
                asked.iter().filter(|from| from.is_none()).count() <= 3,
                "{asked:?}"
            );
        }
        assert_eq!(fs::read_dir(dir.path().join("cache/incoming"))?.count(), 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_pull_that_failed_goes_on_at_the_next_attempt() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let wanted = large_image();
    let layer = wanted.layers[0].clone();
    // Breaks off, and then knows nothing of the layer for a while.
    let state = Arc::new(Mutex::new(Vec::new()));
    let (image, log) = (wanted.clone(), Arc::clone(&state));
    let address = serve(move |request| {
        let ok = |bytes: &[u8]| {
            (
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", bytes.len()),
                bytes.to_vec(),
            )
        };
        let mut blobs = image.blobs().chain([&image.manifest]);
        let Some(blob) = blobs.find(|blob| request.path.ends_with(&blob.digest.to_string())) else {
            return ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n".to_owned(), Vec::new());
        };
        if blob.digest != layer.digest {
            return ok(&blob.bytes);
        }
        let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        log.push(request.from);
        match (log.len(), request.from) {
            (1, _) => (ok(&blob.bytes).0, blob.bytes[..1000].to_vec()),
            (2, _) => ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n".to_owned(), Vec::new()),
            (_, Some(from)) => (
                format!(
                    "HTTP/1.1 206 Part\r\nContent-Range: bytes {from}-{0}/{1}\r\nContent-Length: {2}\r\n",
                    blob.bytes.len() - 1,
                    blob.bytes.len(),
                    blob.bytes.len() - from
                ),
                blob.bytes[from..].to_vec(),
            ),
            (_, None) => ok(&blob.bytes),
        }
    })?;
    let fetcher = fetcher(dir.path(), None)?;
    let reference: ImageRef = format!("{address}/x@{}", wanted.digest()).parse()?;
    let image = fetcher.confirm(&reference, &Keyring::anonymous()).await?;
    assert!(fetcher.layer(&image, &image.layers[0], None).await.is_err());
    fetcher.layer(&image, &image.layers[0], None).await?;
    let asked = state.lock().map(|asked| asked.clone()).unwrap_or_default();
    assert_eq!(asked, [None, Some(1000), Some(1000)]);
    Ok(())
}

/// How a registry answers to `HEAD`.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Head {
    Well,
    WithoutDigest,
    WithAnotherDigest,
    NotAllowed,
    /// With status 500.
    Broken,
}

/// What a server was asked: method, and the last part of the path.
type Log = Arc<Mutex<Vec<String>>>;

fn asked(log: &Log) -> Vec<String> {
    log.lock()
        .map(|mut log| std::mem::take(&mut *log))
        .unwrap_or_default()
}

/// A registry with `image` in all repositories, under its digest and under each tag.
fn answering(image: &Image, head: Head) -> Result<(String, Log)> {
    let (image, log) = (image.clone(), Log::default());
    let asked = Arc::clone(&log);
    let address = serve(move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default().to_owned();
        let of_digest = image.blobs().find(|blob| blob.digest.to_string() == name);
        let blob = of_digest.unwrap_or(&image.manifest);
        let shown = match name == image.digest().to_string() {
            true => "manifest",
            false if of_digest.is_some() => "blob",
            false => "tag",
        };
        if let Ok(mut asked) = asked.lock() {
            asked.push(format!("{} {shown}", request.method));
        }
        let (status, digest) = match (request.method.as_str(), head) {
            ("GET", _) | (_, Head::WithoutDigest) => ("200 OK", None),
            (_, Head::Well) => ("200 OK", Some(blob.digest)),
            (_, Head::WithAnotherDigest) => ("200 OK", Some(Digest::of(b"other"))),
            (_, Head::NotAllowed) => ("405 No", None),
            (_, Head::Broken) => ("500 No", None),
        };
        let digest = digest.map_or(String::new(), |digest| {
            format!("Docker-Content-Digest: {digest}\r\n")
        });
        let length = blob.bytes.len();
        let head = format!("HTTP/1.1 {status}\r\n{digest}Content-Length: {length}\r\n");
        (head, blob.bytes.clone())
    })?;
    Ok((address, log))
}

#[tokio::test]
async fn a_manifest_that_is_here_is_not_sent_again() -> Result<()> {
    let nobody = Keyring::anonymous();
    let wanted = large_image();
    for head in [
        Head::Well,
        Head::WithoutDigest,
        Head::WithAnotherDigest,
        Head::NotAllowed,
        Head::Broken,
    ] {
        let again = |what: &str| match head {
            Head::Well => vec![format!("HEAD {what}")],
            _ => vec![format!("HEAD {what}"), format!("GET {what}")],
        };
        let dir = tempfile::tempdir()?;
        let (address, log) = answering(&wanted, head)?;
        let fetcher = fetcher(dir.path(), None)?;
        let reference: ImageRef = format!("{address}/team/app@{}", wanted.digest()).parse()?;
        fetcher.confirm(&reference, &nobody).await?;
        assert_eq!(asked(&log), ["GET manifest", "GET blob"], "{head:?}");
        let image = fetcher.confirm(&reference, &nobody).await?;
        assert_eq!(asked(&log), again("manifest"), "{head:?}");
        assert_eq!(image.grant, Some(Grant::Anyone));
        // Who only says that he has it may not have it.
        let other: ImageRef = format!("{address}/other@{}", wanted.digest()).parse()?;
        fetcher.confirm(&other, &nobody).await?;
        assert_eq!(asked(&log)[0], "GET manifest", "{head:?}");

        let tagged: ImageRef = format!("{address}/third:1").parse()?;
        let first = fetcher.resolve(&tagged, &nobody).await?;
        assert_eq!(asked(&log), ["GET tag"], "{head:?}");
        assert_eq!(fetcher.resolve(&tagged, &nobody).await?, first);
        assert_eq!(asked(&log), again("tag"), "{head:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_registry_says_when_to_ask_again() -> Result<()> {
    let wanted = large_image();
    for (retry_after, tries) in [("1", 2), ("3600", 1)] {
        let dir = tempfile::tempdir()?;
        let (image, log) = (wanted.clone(), Log::default());
        let asks = Arc::clone(&log);
        let address = serve(move |request| {
            let tries = asks.lock().map_or(0, |mut asks| {
                asks.push(request.method.clone());
                asks.len()
            });
            let manifest = &image.manifest.bytes;
            match tries {
                1 => {
                    let head =
                        format!("HTTP/1.1 429 No\r\nRetry-After: {retry_after}\r\nContent-Length: 0\r\n");
                    (head, Vec::new())
                }
                _ => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", manifest.len());
                    (head, manifest.clone())
                }
            }
        })?;
        let begun = std::time::Instant::now();
        let reference: ImageRef = format!("{address}/x@{}", wanted.digest()).parse()?;
        let resolved = fetcher(dir.path(), None)?
            .resolve(&reference, &Keyring::anonymous())
            .await;
        assert_eq!(asked(&log).len(), tries, "{retry_after}");
        match resolved {
            Ok(_) => assert!(tries == 2 && begun.elapsed() >= Duration::from_secs(1)),
            Err(error) => {
                assert!(
                    error
                        .to_string()
                        .ends_with("answered 429, to be asked again in 3600 s"),
                    "{error}"
                );
                assert_eq!(tries, 1);
            }
        }
    }
    Ok(())
}

/// A mirror that keeps each repository in the project `proxy`, and gives what was asked for with a token for just that: to
/// everybody, or to [`testkit::registry::USER`]. Its challenge may leave out what to ask for.
fn by_token(image: &Image, says_scope: bool, private: bool) -> Result<String> {
    const SCOPE: &str = "repository:proxy/team/app:pull";
    let image = image.clone();
    let own = Arc::new(Mutex::new(String::new()));
    let name = Arc::clone(&own);
    let address = serve(move |request| {
        let answer = |status: &str, head: &str, body: &[u8]| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\n");
            (head, body.to_vec())
        };
        if let Some(query) = request.path.strip_prefix("/token?") {
            let shown = request.authorization.as_deref().unwrap_or_default();
            if private && !shown.starts_with("Basic ") {
                return answer("401 No", "", b"");
            }
            // The token says what it is for, as a JWT does.
            let scope = query.split('&').find_map(|part| part.strip_prefix("scope="));
            let token = format!("{{\"token\": \"for-{}\"}}", scope.unwrap_or_default());
            return answer("200 OK", "", token.as_bytes());
        }
        let wanted = format!("Bearer for-{}", SCOPE.replace(':', "%3A").replace('/', "%2F"));
        if request.authorization.as_deref() != Some(wanted.as_str()) {
            let host = name.lock().map(|name| name.clone()).unwrap_or_default();
            let scope = if says_scope {
                format!(",scope=\"{SCOPE}\"")
            } else {
                String::new()
            };
            let head =
                format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"x\"{scope}\r\n");
            return answer("401 No", &head, b"");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let mut blobs = image.blobs().chain([&image.manifest]);
        match blobs.find(|blob| path.ends_with(&blob.digest.to_string())) {
            Some(blob) if path.starts_with("/v2/proxy/team/app/") => answer("200 OK", "", &blob.bytes),
            _ => answer("404 No", "", b""),
        }
    })?;
    if let Ok(mut own) = own.lock() {
        own.clone_from(&address);
    }
    Ok(address)
}

#[tokio::test]
async fn a_mirror_with_a_path_says_what_a_token_is_for() -> Result<()> {
    let wanted = large_image();
    let reference: ImageRef = format!("r.invalid/team/app@{}", wanted.digest()).parse()?;
    for (says_scope, private) in [(true, false), (true, true), (false, false)] {
        let dir = tempfile::tempdir()?;
        let address = by_token(&wanted, says_scope, private)?;
        let hosts = dir.path().join("hosts");
        fs::create_dir_all(hosts.join("r.invalid"))?;
        let text = format!("[host.\"http://{address}/v2/proxy\"]\noverride_path = true\n");
        fs::write(hosts.join("r.invalid/hosts.toml"), text)?;
        let fetcher = fetcher(dir.path(), Some(&hosts))?;
        let project = Registry::docker_config(&format!("{address}/proxy"));
        let keys = match private {
            true => keys("own/1", &project)?,
            false => Keyring::anonymous(),
        };
        let pulled = fetcher.fetch(&reference, &keys).await;
        let shown = format!("{says_scope} {private}: {:?}", pulled.as_ref().err());
        assert!(pulled.is_ok(), "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn mirrors_are_asked_first_and_believed_by_digest_only() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mirror, upstream) = (Registry::start_tls()?, Registry::start()?);
    let wanted = large_image();
    mirror.push(&wanted, "team/app", "1").await?;
    let only_upstream = ImageBuilder::new().build();
    upstream.push(&only_upstream, "team/rare", "1").await?;
    upstream.push(&wanted, "team/app", "1").await?;
    // Sends an image that nobody asked for, whatever is asked.
    let liar = serve(|_request| {
        let bytes = ImageBuilder::new().architecture("s390x").build().manifest.bytes;
        (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", bytes.len()),
            bytes,
        )
    })?;
    let hosts = dir.path().join("hosts");
    let of = hosts.join("registry.example");
    fs::create_dir_all(&of)?;
    fs::write(of.join("ca.pem"), mirror.authority().context("no certificate")?)?;
    fs::write(
        of.join("hosts.toml"),
        format!(
            "server = \"http://{}\"\n\
             [host.\"http://{liar}\"]\ncapabilities = [\"pull\"]\n\
             [host.\"https://{}\"]\nca = \"ca.pem\"\n",
            upstream.address(),
            mirror.address()
        ),
    )?;
    let fetcher = fetcher(dir.path(), Some(&hosts))?;
    let keys = keys("mirror/1", &Registry::docker_config(mirror.address()))?;
    let app: ImageRef = "registry.example/team/app:1".parse()?;
    let pinned = fetcher.resolve(&app, &keys).await?;
    assert_eq!(pinned.digest, Some(wanted.digest()));
    let image = fetcher.confirm(&pinned, &keys).await?;
    assert_eq!(
        image.grant,
        Some(Grant::Secret("mirror/1".to_owned())),
        "the mirror gave it"
    );
    let rare = fetcher
        .resolve(&"registry.example/team/rare:1".parse()?, &keys)
        .await?;
    assert_eq!(rare.digest, Some(only_upstream.digest()));
    // Without the mirror's password the registry itself remains.
    let image = fetcher.confirm(&pinned, &Keyring::anonymous()).await?;
    assert_eq!(image.grant, Some(Grant::Anyone));

    // The authority of a host is trusted for that host only.
    fs::write(
        of.join("hosts.toml"),
        format!("server = \"https://{}\"\n", mirror.address()),
    )?;
    let untrusting = Fetcher::new(FetchConfig {
        cache_dir: dir.path().join("other"),
        layout_root: dir.path().join("layouts"),
        ca_files: Vec::new(),
        hosts_dir: Some(hosts.clone()),
        limits: Limits::default(),
        timeout: Duration::from_secs(20),
        cache: Cache::Passing,
    })?;
    let error = untrusting
        .resolve(&app, &keys)
        .await
        .err()
        .context("it was trusted")?;
    assert!(matches!(error, FetchError::Http { .. }), "{error}");
    Ok(())
}
