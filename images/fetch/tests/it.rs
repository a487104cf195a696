//! Fetching from a real registry, from layouts, and from servers that misbehave.

#[path = "it/registries.rs"]
mod registries;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use api::{Digest, ImageRef};
use images_fetch::{Cache, FetchConfig, FetchError, Fetcher, Keyring, Limits};
use serde_json::json;
use testkit::{
    image::{Blob, Image, ImageBuilder, Layer, OCI_INDEX, Packing, index},
    registry::Registry,
};

fn fetcher(dir: &Path, limits: Limits) -> Result<Fetcher, FetchError> {
    Fetcher::new(FetchConfig {
        cache_dir: dir.join("cache"),
        layout_root: dir.join("layouts"),
        ca_files: Vec::new(),
        hosts_dir: None,
        limits,
        timeout: Duration::from_secs(20),
        cache: Cache::Lasting,
    })
}

fn image(text: &str) -> Image {
    let layer = |packing| Layer::new(packing).file("file", 0o644, format!("{text} {packing:?}").as_bytes());
    ImageBuilder::new()
        .layer(layer(Packing::Tar))
        .layer(layer(Packing::Gzip))
        .layer(layer(Packing::Zstd))
        .container(json!({ "Entrypoint": ["/bin/app"], "User": "app", "StopSignal": "SIGQUIT" }))
        .build()
}

#[tokio::test]
async fn an_image_from_a_registry_becomes_a_layout_with_exactly_that_image() -> Result<()> {
    let (dir, registry) = (tempfile::tempdir()?, Registry::start()?);
    let wanted = image("wanted");
    let reference = registry.push(&wanted, "lab/app", "1").await?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    let pinned = fetcher.resolve(&reference, &Keyring::anonymous()).await?;
    assert_eq!(pinned, reference.pinned(wanted.digest()));
    let verified = fetcher.fetch(&pinned, &Keyring::anonymous()).await?;
    assert_eq!(verified.image().config.entrypoint, ["/bin/app"]);
    assert_eq!(verified.image().config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(verified.image().layers.len(), 3);

    let layout = dir.path().join("out");
    verified.write_layout(&layout)?;
    let mut names: Vec<_> = fs::read_dir(layout.join("blobs/sha256"))?
        .map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_, _>>()?;
    names.sort();
    let mut expected: Vec<_> = wanted
        .blobs()
        .chain([&wanted.manifest])
        .map(|blob| blob.digest.hex())
        .collect();
    expected.sort();
    assert_eq!(names, expected);
    for name in names {
        let bytes = fs::read(layout.join("blobs/sha256").join(&name))?;
        assert_eq!(Digest::of(&bytes).hex(), name);
    }

    // Everything is here now, so the registry is no longer needed.
    drop(registry);
    fetcher.fetch(&pinned, &Keyring::anonymous()).await?;
    Ok(())
}

#[tokio::test]
async fn an_index_resolves_to_the_manifest_of_this_machine() -> Result<()> {
    let (dir, registry) = (tempfile::tempdir()?, Registry::start()?);
    let (ours, other) = (image("ours"), image("other"));
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let reference = registry
        .push_index(
            &[(&other, platform("s390x")), (&ours, platform(architecture))],
            "lab/multi",
            "1",
        )
        .await?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    assert_eq!(
        fetcher.resolve(&reference, &Keyring::anonymous()).await?.digest,
        Some(ours.digest())
    );

    // Of the variants of one architecture the one that runs on every node of it.
    let (newer, odd) = (image("newer"), image("odd"));
    let (lowest, higher) = if cfg!(target_arch = "aarch64") {
        ("v8", "v8.2")
    } else {
        ("v1", "v3")
    };
    let variant = |variant: &str| json!({ "os": "linux", "architecture": architecture, "variant": variant });
    let entries = [
        (&odd, variant("new")),
        (&newer, variant(higher)),
        (&ours, variant(lowest)),
    ];
    let variants = registry.push_index(&entries, "lab/variants", "1").await?;
    let resolved = fetcher.resolve(&variants, &Keyring::anonymous()).await?;
    assert_eq!(resolved.digest, Some(ours.digest()));

    let foreign = registry
        .push_index(&[(&other, platform("s390x"))], "lab/foreign", "1")
        .await?;
    let error = fetcher
        .resolve(&foreign, &Keyring::anonymous())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it offers linux/s390x"), "{error}");

    // An index that lies about the platform is found out by the configuration.
    let liar = ImageBuilder::new().architecture("s390x").build();
    let lying = registry
        .push_index(&[(&liar, platform(architecture))], "lab/liar", "1")
        .await?;
    let pinned = fetcher.resolve(&lying, &Keyring::anonymous()).await?;
    assert!(matches!(
        fetcher.fetch(&pinned, &Keyring::anonymous()).await,
        Err(FetchError::Platform { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn layouts_are_found_by_tag_and_digest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (one, two) = (image("one"), image("two"));
    let layout = dir.path().join("layouts/lab/app");
    let mut first = one.manifest.descriptor();
    first["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let nested = Blob::new(
        OCI_INDEX,
        index(OCI_INDEX, &[two.manifest.descriptor()])
            .to_string()
            .into_bytes(),
    );
    let mut second = nested.descriptor();
    second["annotations"] = json!({ "org.opencontainers.image.ref.name": "2" });
    let others: Vec<Blob> = two.blobs().chain([&two.manifest, &nested]).cloned().collect();
    one.write_layout_with(&layout, &[first.clone(), second], &others)?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    let resolve = async |text: &str| {
        fetcher
            .resolve(&text.parse::<ImageRef>().unwrap(), &Keyring::anonymous())
            .await
    };
    assert_eq!(
        resolve("oci-layout.local/lab/app:1").await?.digest,
        Some(one.digest())
    );
    let pinned = resolve("oci-layout.local/lab/app:2").await?;
    assert_eq!(pinned.digest, Some(two.digest()));
    fetcher.fetch(&pinned, &Keyring::anonymous()).await?;
    assert!(matches!(
        resolve("oci-layout.local/lab/app:3").await,
        Err(FetchError::NotFound { .. })
    ));
    assert!(matches!(
        resolve("oci-layout.local/lab/none:1").await,
        Err(FetchError::NotFound { .. })
    ));

    one.write_layout_with(&layout, &[first.clone(), first], &[])?;
    assert!(matches!(
        resolve("oci-layout.local/lab/app:1").await,
        Err(FetchError::Document { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn every_forgery_is_found() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    let refused = async |name: &str, image: Image| -> Result<FetchError> {
        image.write_layout(&dir.path().join("layouts").join(name), "1")?;
        let pinned = fetcher
            .resolve(
                &format!("oci-layout.local/{name}:1").parse()?,
                &Keyring::anonymous(),
            )
            .await;
        match pinned {
            Ok(pinned) => fetcher
                .fetch(&pinned, &Keyring::anonymous())
                .await
                .err()
                .context("it was accepted"),
            Err(error) => Ok(error),
        }
    };
    let mut layer = image("layer");
    layer.layers[1].bytes[20] ^= 1;
    assert!(matches!(
        refused("layer", layer).await?,
        FetchError::DigestMismatch { .. }
    ));
    let mut config = image("config");
    let longer = config.config.bytes.len() + 1;
    config.config.bytes.resize(longer, b' ');
    assert!(matches!(
        refused("config", config).await?,
        FetchError::SizeMismatch { .. }
    ));
    let mut manifest = image("manifest");
    manifest.manifest.bytes.push(b' ');
    assert!(matches!(
        refused("manifest", manifest).await?,
        FetchError::SizeMismatch { .. } | FetchError::DigestMismatch { .. }
    ));
    for layer in 0..3 {
        let builder = ImageBuilder::new()
            .layer(Layer::new(Packing::Tar).file("a", 0o644, b"a"))
            .layer(Layer::new(Packing::Gzip).file("b", 0o644, b"b"))
            .layer(Layer::new(Packing::Zstd).file("c", 0o644, b"c"));
        let forged = builder.forge_diff_id(layer, Digest::of(b"clean")).build();
        let error = refused(&format!("diff{layer}"), forged).await?;
        assert!(error.to_string().contains("uncompressed"), "{error}");
    }
    let mut missing = image("missing");
    missing.layers.remove(2);
    assert!(matches!(
        refused("missing", missing).await?,
        FetchError::NotFound { .. }
    ));
    Ok(())
}

#[tokio::test]
async fn limits_hold() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let zeros = Layer::new(Packing::Gzip).file("zeros", 0o644, &vec![0; 4 << 20]);
    let bomb = ImageBuilder::new().layer(zeros).build();
    assert!(bomb.layers[0].bytes.len() < 100_000, "it compresses well");
    bomb.write_layout(&dir.path().join("layouts/bomb"), "1")?;
    let attempt = async |name: &str, limits: Limits| {
        let fetcher = fetcher(&dir.path().join(name), limits)?;
        let _moved = fs::rename(dir.path().join("layouts"), dir.path().join(name).join("layouts"));
        let pinned = fetcher
            .resolve(&"oci-layout.local/bomb:1".parse().unwrap(), &Keyring::anonymous())
            .await;
        let result = match pinned {
            Ok(pinned) => fetcher.fetch(&pinned, &Keyring::anonymous()).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let _moved = fs::rename(dir.path().join(name).join("layouts"), dir.path().join("layouts"));
        result
    };
    let base = Limits::default();
    attempt("fine", base).await?;
    let uncompressed = attempt(
        "a",
        Limits {
            uncompressed_bytes: 1 << 20,
            ..base
        },
    )
    .await;
    assert!(
        matches!(uncompressed, Err(FetchError::TooLarge { .. })),
        "{uncompressed:?}"
    );
    let compressed = attempt(
        "b",
        Limits {
            compressed_bytes: 100,
            ..base
        },
    )
    .await;
    assert!(
        matches!(compressed, Err(FetchError::TooLarge { .. })),
        "{compressed:?}"
    );
    let document = attempt(
        "c",
        Limits {
            document_bytes: 100,
            ..base
        },
    )
    .await;
    assert!(
        matches!(document, Err(FetchError::TooLarge { .. })),
        "{document:?}"
    );
    let layers = attempt("d", Limits { layers: 0, ..base }).await;
    assert!(
        matches!(layers, Err(FetchError::TooManyLayers { .. })),
        "{layers:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_download_that_broke_off_goes_on_with_the_next_blob() -> Result<()> {
    let (dir, registry) = (tempfile::tempdir()?, Registry::start()?);
    let wanted = image("resumed");
    let reference = registry.push(&wanted, "lab/resumed", "1").await?;
    // The registry loses its last layer, so the first attempt ends there.
    let hex = wanted.layers[2].digest.hex();
    let lost = registry.store().join(format!(
        "docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let bytes = fs::read(&lost)?;
    fs::remove_file(&lost)?;
    let first = fetcher(dir.path(), Limits::default())?;
    let pinned = first.resolve(&reference, &Keyring::anonymous()).await?;
    assert!(first.fetch(&pinned, &Keyring::anonymous()).await.is_err());
    drop(first);
    // A new process finds the others and needs only the lost one.
    for layer in &wanted.layers[..2] {
        assert!(
            dir.path()
                .join("cache/blobs/sha256")
                .join(layer.digest.hex())
                .exists()
        );
        let hex = layer.digest.hex();
        fs::remove_file(registry.store().join(format!(
            "docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        )))?;
    }
    fs::write(&lost, bytes)?;
    fetcher(dir.path(), Limits::default())?
        .fetch(&pinned, &Keyring::anonymous())
        .await?;
    Ok(())
}

#[tokio::test]
async fn retain_and_trim_leave_what_is_in_use() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (kept, dropped) = (image("kept"), image("dropped"));
    kept.write_layout(&dir.path().join("layouts/kept"), "1")?;
    dropped.write_layout(&dir.path().join("layouts/dropped"), "1")?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    for name in ["kept", "dropped"] {
        let pinned = fetcher
            .resolve(
                &format!("oci-layout.local/{name}:1").parse()?,
                &Keyring::anonymous(),
            )
            .await?;
        let verified = fetcher.fetch(&pinned, &Keyring::anonymous()).await?;
        fetcher.trim(0)?;
        verified
            .write_layout(&dir.path().join(format!("out-{name}")))
            .context("blobs in use were trimmed")?;
    }
    fetcher
        .fetch(
            &format!("oci-layout.local/kept@{}", kept.digest()).parse()?,
            &Keyring::anonymous(),
        )
        .await?;
    let layers = fetcher.retain(&BTreeSet::from([kept.digest()]))?;
    assert_eq!(
        layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(),
        kept.layers.iter().map(|l| l.digest).collect::<Vec<_>>()
    );
    let left = fs::read_dir(dir.path().join("cache/blobs/sha256"))?.count();
    assert_eq!(left, 2, "manifest and configuration of one image");
    Ok(())
}

#[tokio::test]
async fn tags_are_resolved_before_anything_is_fetched() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    let image: ImageRef = "oci-layout.local/x:1".parse()?;
    assert!(matches!(
        fetcher.fetch(&image, &Keyring::anonymous()).await,
        Err(FetchError::Unpinned { .. })
    ));
    assert!(matches!(
        fetcher.describe(&image, &Keyring::anonymous()).await,
        Err(FetchError::Unpinned { .. })
    ));
    Ok(())
}

/// Answers each connection with the next of `answers`; an empty one sends bytes without end.
fn misbehaving(answers: Vec<String>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let _request = stream.read(&mut [0; 4096]);
            if answer.is_empty() {
                let _head = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
                while stream.write_all(&[b' '; 65536]).is_ok() {}
            } else {
                let _sent = stream.write_all(answer.as_bytes());
            }
        }
    });
    Ok(address)
}

#[tokio::test]
async fn hostile_registries_get_nowhere() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let fetcher = fetcher(dir.path(), Limits::default())?;
    let resolve = async |answers: &[&str]| -> Result<FetchError> {
        let address = misbehaving(answers.iter().map(|answer| (*answer).to_owned()).collect())?;
        let image = format!("{address}/x:1").parse()?;
        fetcher
            .resolve(&image, &Keyring::anonymous())
            .await
            .err()
            .context("it was accepted")
    };
    assert!(
        matches!(resolve(&[""]).await?, FetchError::TooLarge { .. }),
        "an endless manifest"
    );
    let redirect = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(
        matches!(
            resolve(&[redirect]).await?,
            FetchError::Status { status: 302, .. }
        ),
        "a redirect is not followed"
    );
    let realm = |realm: &str| {
        format!(
            "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    let error = resolve(&[&realm("http://192.0.2.1/token")]).await?;
    assert!(
        matches!(error, FetchError::Challenge { .. }),
        "a token over plain HTTP: {error}"
    );
    let endless_token = misbehaving(vec![String::new()])?;
    let error = resolve(&[&realm(&format!("http://{endless_token}/token"))]).await?;
    assert!(
        matches!(error, FetchError::TooLarge { .. }),
        "an endless token: {error}"
    );
    let basic = "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(matches!(
        resolve(&[basic]).await?,
        FetchError::Unauthorized { .. }
    ));
    Ok(())
}
