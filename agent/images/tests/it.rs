//! Unpacking and the store on a real file system. Needs root, as the agent does.

use std::{
    collections::BTreeSet,
    fs,
    io::Cursor,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_images::{
    Collected, ImageError, ImageStore, Keyring, Limits, Progress, Pulled, RootfsLayers, StoreConfig,
    UnpackError, UnpackLimits, Unpacked, unpack,
};
use anyhow::{Context, Result};
use api::{
    Digest, ImageRef,
    pull_secret::{PullSecret, SecretForm},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tar::EntryType;
use testkit::{
    image::{Image, ImageBuilder, Layer, Packing},
    registry::Registry,
};

/// A directory to unpack into, between neighbours that must not change.
struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    /// In memory: for thousands of cases.
    fn in_memory() -> Result<Self> {
        Self::within(Path::new("/dev/shm"))
    }

    fn within(parent: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(parent)?;
        fs::create_dir(dir.path().join("root"))?;
        fs::write(dir.path().join("outside"), "untouched")?;
        Ok(Self { dir })
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn unpack(&self, tar: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_within(
            tar,
            &UnpackLimits {
                bytes: 64 << 20,
                entries: 1000,
            },
        )
    }

    fn unpack_within(&self, tar: &[u8], limits: &UnpackLimits) -> Result<Unpacked, UnpackError> {
        let root = fs::File::open(self.root()).map_err(|source| UnpackError::Read { source })?;
        unpack(Cursor::new(tar), root.as_fd(), limits)
    }

    fn outside_is_untouched(&self) -> bool {
        let names: BTreeSet<_> = fs::read_dir(self.dir.path())
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        names == BTreeSet::from(["outside".into(), "root".into()])
            && fs::read(self.dir.path().join("outside")).is_ok_and(|content| content == b"untouched")
            && fs::metadata(self.dir.path().join("outside")).is_ok_and(|stat| stat.nlink() == 1)
    }
}

fn tar() -> Layer {
    Layer::new(Packing::Tar)
}

#[test]
fn modes_owners_times_and_links_arrive() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut header = tar::Header::new_gnu();
    header.set_path("etc/shadow")?;
    header.set_mode(0o4640);
    header.set_uid(1000);
    header.set_gid(42);
    header.set_mtime(1_600_000_000);
    header.set_size(6);
    header.set_cksum();
    let mut layer = tar().dir("tmp/", 0o1777).dir("etc/", 0o755);
    layer.raw(&header, b"secret");
    let layer = layer
        .symlink("etc/absolute", "/etc/shadow")
        .hard_link("etc/linked", "etc/shadow")
        .entry(EntryType::Fifo, "run/pipe", 0o600, "", b"")
        .entry(EntryType::Char, "dev/null", 0o666, "", b"");
    let unpacked = sandbox.unpack(&layer.tar())?;
    assert_eq!(
        (unpacked.entries, unpacked.bytes, unpacked.devices_skipped),
        (7, 6, 1)
    );
    let root = sandbox.root();
    let shadow = fs::metadata(root.join("etc/shadow"))?;
    assert_eq!(
        (shadow.uid(), shadow.gid(), shadow.mtime()),
        (1000, 42, 1_600_000_000)
    );
    assert_eq!(shadow.mode() & 0o7777, 0o640, "set-user-ID is dropped");
    assert_eq!(shadow.nlink(), 2);
    assert_eq!(
        fs::metadata(root.join("tmp"))?.permissions().mode() & 0o7777,
        0o1777
    );
    assert_eq!(
        fs::metadata(root.join("etc"))?.mtime(),
        1_700_000_000,
        "children do not change a directory's time"
    );
    assert_eq!(
        fs::read_link(root.join("etc/absolute"))?,
        Path::new("/etc/shadow")
    );
    assert!(fs::symlink_metadata(root.join("run/pipe"))?.file_type().is_fifo());
    assert!(!root.join("dev/null").exists());
    Ok(())
}

#[test]
fn nothing_escapes() -> Result<()> {
    let climbing = [
        "../outside",
        "a/../../outside",
        "/../outside",
        "./../outside",
        "..",
    ];
    for path in climbing {
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Symlink] {
            let sandbox = Sandbox::new()?;
            let content: &[u8] = if kind == EntryType::Regular { b"owned" } else { b"" };
            let result = sandbox.unpack(&tar().entry(kind, path, 0o644, "x", content).tar());
            assert!(
                matches!(result, Err(UnpackError::Path { .. })),
                "{kind:?} {path:?}: {result:?}"
            );
            assert!(sandbox.outside_is_untouched(), "{kind:?} {path:?}");
        }
    }
    for target in ["../outside", "/../outside", "..", ""] {
        let sandbox = Sandbox::new()?;
        assert!(
            sandbox.unpack(&tar().hard_link("link", target).tar()).is_err(),
            "hard link to {target:?}"
        );
        assert!(sandbox.outside_is_untouched());
    }
    Ok(())
}

#[test]
fn links_of_the_layer_resolve_inside_it() -> Result<()> {
    for target in ["..", "../..", "/", "/etc", "../../../../../../etc", "."] {
        let sandbox = Sandbox::new()?;
        let layer = tar()
            .symlink("link", target)
            .file("link/outside", 0o644, b"owned")
            .hard_link("copy", "link/outside");
        // Some targets do not exist inside the layer: refusing and resolving inside are both right.
        let _either = sandbox.unpack(&layer.tar());
        assert!(sandbox.outside_is_untouched(), "{target:?}");
        assert!(!Path::new("/etc/outside").exists(), "{target:?}");
    }
    let sandbox = Sandbox::new()?;
    sandbox.unpack(
        &tar()
            .dir("usr/bin/", 0o755)
            .symlink("bin", "/usr/bin")
            .file("bin/tool", 0o755, b"x")
            .tar(),
    )?;
    assert!(
        sandbox.root().join("usr/bin/tool").is_file(),
        "a merged /usr works"
    );
    Ok(())
}

#[test]
fn a_file_in_place_of_a_link_replaces_the_link() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let outside = sandbox.dir.path().join("outside");
    let layer = tar()
        .symlink("file", &outside.display().to_string())
        .file("file", 0o644, b"owned");
    sandbox.unpack(&layer.tar())?;
    assert!(sandbox.outside_is_untouched());
    assert_eq!(fs::read(sandbox.root().join("file"))?, b"owned");
    Ok(())
}

#[test]
fn removed_files_become_whiteouts() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let layer = tar()
        .file("etc/.wh.gone", 0o644, b"")
        .dir("opt/", 0o755)
        .file("opt/.wh..wh..opq", 0o644, b"")
        .file("var/.wh.replaced", 0o644, b"")
        .dir("var/replaced/", 0o755)
        .dir("srv/kept/", 0o755)
        .file("srv/.wh.kept", 0o644, b"")
        .file("srv/.wh..wh.plnk", 0o644, b"");
    sandbox.unpack(&layer.tar())?;
    let root = sandbox.root();
    let gone = fs::symlink_metadata(root.join("etc/gone"))?;
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for dir in ["opt", "var/replaced", "srv/kept"] {
        for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
            let mut value = [0; 1];
            rustix::fs::getxattr(root.join(dir), name, &mut value[..])
                .with_context(|| format!("{dir} {name}"))?;
            assert_eq!(&value, b"y");
        }
    }
    assert_eq!(fs::read_dir(root.join("srv"))?.count(), 1);
    for bad in [".wh.", ".wh..", ".wh...", ".wh..wh..opq"] {
        let result = Sandbox::new()?.unpack(&tar().file(bad, 0o644, b"").tar());
        assert!(
            matches!(result, Err(UnpackError::Path { .. })),
            "{bad:?}: {result:?}"
        );
    }
    Ok(())
}

#[test]
fn limits_hold() -> Result<()> {
    let limits = UnpackLimits {
        bytes: 10_000,
        entries: 3,
    };
    let zeros = tar().file("zeros", 0o644, &[0; 20_000]).tar();
    let result = Sandbox::new()?.unpack_within(&zeros, &limits);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { what: "bytes", .. })),
        "{result:?}"
    );
    let padding = [tar().file("a", 0o644, b"a").tar(), vec![0; 20_000]].concat();
    let result = Sandbox::new()?.unpack_within(&padding, &limits);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { what: "bytes", .. })),
        "{result:?}"
    );
    let many = (0..4)
        .fold(tar(), |layer, n| layer.dir(&format!("d{n}/"), 0o755))
        .tar();
    let result = Sandbox::new()?.unpack_within(&many, &limits);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { what: "members", .. })),
        "{result:?}"
    );
    let deep = tar().file("a/b/c/d", 0o644, b"").tar();
    let result = Sandbox::new()?.unpack_within(&deep, &limits);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { what: "members", .. })),
        "directories that no member is count too: {result:?}"
    );
    Ok(())
}

/// A PAX or GNU extension header before a file of five bytes.
fn extended(kind: EntryType, data: &[u8]) -> Vec<u8> {
    tar()
        .entry(kind, "extension", 0o644, "", data)
        .file("name", 0o644, b"12345")
        .tar()
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let record = |(key, value): &(&str, &str)| {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len();
        while length != format!("{length}{rest}").len() {
            length = format!("{length}{rest}").len();
        }
        format!("{length}{rest}")
    };
    records.iter().map(record).collect::<String>().into_bytes()
}

#[test]
fn extension_headers_are_obeyed_or_refused_never_guessed() -> Result<()> {
    let long = "d/".repeat(100) + "file";
    for tar in [
        extended(
            EntryType::XHeader,
            &pax(&[("path", &long), ("mtime", "1500000000.5")]),
        ),
        extended(EntryType::GNULongName, format!("{long}\0").as_bytes()),
    ] {
        let sandbox = Sandbox::new()?;
        sandbox.unpack(&tar)?;
        assert_eq!(fs::read(sandbox.root().join(&long))?, b"12345");
    }
    // Values have any bytes: an attribute that is left out, and a name.
    for (key, value, name) in [
        (
            "SCHILY.xattr.security.capability",
            "\u{1}\n\0\n9 path=x\n",
            "name",
        ),
        ("path", "two\nlines", "two\nlines"),
    ] {
        let sandbox = Sandbox::new()?;
        sandbox.unpack(&extended(EntryType::XHeader, &pax(&[(key, value)])))?;
        assert_eq!(fs::read(sandbox.root().join(name))?, b"12345");
        assert_eq!(fs::read_dir(sandbox.root())?.count(), 1);
    }
    let refused: [(&str, Vec<u8>); 10] = [
        ("no name", extended(EntryType::XHeader, &pax(&[("path", "")]))),
        (
            "what is behind the records",
            extended(
                EntryType::XHeader,
                &[pax(&[("mtime", "1")]), b"\n9 path=x\n".to_vec()].concat(),
            ),
        ),
        (
            "a size that differs",
            extended(EntryType::XHeader, &pax(&[("size", "4")])),
        ),
        (
            "a path given twice",
            extended(EntryType::XHeader, &pax(&[("path", "a"), ("path", "b")])),
        ),
        (
            "a sparse file",
            extended(EntryType::XHeader, &pax(&[("GNU.sparse.major", "1")])),
        ),
        (
            "a global path",
            extended(EntryType::XGlobalHeader, &pax(&[("path", "a")])),
        ),
        (
            "a path that climbs",
            extended(EntryType::XHeader, &pax(&[("path", "../a")])),
        ),
        (
            "an owner out of range",
            extended(EntryType::XHeader, &pax(&[("uid", "4294967295")])),
        ),
        (
            "a huge extension",
            extended(EntryType::XHeader, &vec![b'x'; 2 << 20]),
        ),
        (
            "an extension without member",
            tar().entry(EntryType::GNULongName, "x", 0, "", b"name").tar(),
        ),
    ];
    for (what, tar) in refused {
        let sandbox = Sandbox::new()?;
        assert!(sandbox.unpack(&tar).is_err(), "{what} was accepted");
        assert!(sandbox.outside_is_untouched(), "{what}");
    }
    Ok(())
}

/// A stable, seeded run of what the fuzz target `unpack_layer` checks: its corpus, and mutations of it.
#[test]
fn mutated_archives_never_escape_and_never_panic() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/unpack_layer");
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&corpus).context("the corpus is committed")? {
        let seed = fs::read(entry?.path())?;
        // The first byte says how the rest is packed; only plain archives are mutated to some effect.
        if let Some((2, tar)) = seed.split_first() {
            seeds.push(tar.to_vec());
        }
    }
    assert!(seeds.len() >= 4);
    for seed in &seeds {
        let sandbox = Sandbox::new()?;
        let _any_result = sandbox.unpack(seed);
        assert!(sandbox.outside_is_untouched());
    }
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        ..Config::default()
    };
    let edit = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    let edits = prop::collection::vec(edit, 1..12);
    TestRunner::new(config).run(&(any::<prop::sample::Index>(), edits), |(seed, edits)| {
        let mut bytes = seed.get(&seeds).clone();
        for (at, value, fix) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if fix {
                fix_checksum(&mut bytes, at / 512 * 512);
            }
        }
        let sandbox = Sandbox::in_memory().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let _any_result = sandbox.unpack(&bytes);
        prop_assert!(sandbox.outside_is_untouched());
        Ok(())
    })?;
    Ok(())
}

/// Makes the header at `start` pass its checksum again, so that mutations get past it.
fn fix_checksum(bytes: &mut [u8], start: usize) {
    let Some(header) = bytes.get_mut(start..start + 512) else {
        return;
    };
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

struct Node {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Node {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let store = Self::open(dir.path())?;
        Ok(Self { dir, store })
    }

    fn open(dir: &Path) -> Result<ImageStore, ImageError> {
        ImageStore::open(StoreConfig {
            dir: dir.join("images"),
            layout_root: dir.join("layouts"),
            ca_files: Vec::new(),
            hosts_dir: None,
            limits: Limits::default(),
            timeout: Duration::from_secs(30),
        })
    }

    async fn ensure(&self, image: &ImageRef) -> Result<RootfsLayers, ImageError> {
        let nobody = Keyring::anonymous();
        match self.store.look(image, &nobody)? {
            Some(found) => Ok(found),
            None => Ok(self.pull(image, &nobody).await?.rootfs),
        }
    }

    async fn pull(&self, image: &ImageRef, keys: &Keyring) -> Result<Pulled, ImageError> {
        self.store.pull(image, keys, false, &Progress::default()).await
    }

    /// Removes everything that nobody uses.
    async fn collect_all(&self) -> Result<Collected, ImageError> {
        self.store
            .collect(&BTreeSet::new(), u64::MAX, Duration::ZERO)
            .await
    }

    fn layout(&self, name: &str, image: &Image) -> Result<ImageRef> {
        image.write_layout(&self.dir.path().join("layouts").join(name), "1")?;
        Ok(format!("oci-layout.local/{name}@{}", image.digest()).parse()?)
    }
}

fn shared_layer() -> Layer {
    Layer::new(Packing::Gzip)
        .file("etc/passwd", 0o644, b"app:x:1000:1000::/:\n")
        .file("etc/old", 0o644, b"old")
        .file("shared", 0o644, b"shared")
}

#[tokio::test]
async fn images_become_layers_that_overlayfs_stacks() -> Result<()> {
    let node = Node::new()?;
    let top = Layer::new(Packing::Zstd)
        .file("top", 0o644, b"top")
        .file("etc/.wh.old", 0o644, b"");
    let image = ImageBuilder::new().layer(shared_layer()).layer(top).build();
    let rootfs = node.ensure(&node.layout("app", &image)?).await?;
    assert_eq!(rootfs.digest, image.digest());
    assert_eq!(rootfs.layers.len(), 2);
    assert_eq!(rootfs.user("app")?.uid, 1000);
    assert_eq!(fs::metadata(&rootfs.layers[0])?.mode() & 0o777, 0o755);
    assert_eq!(
        fs::metadata(node.dir.path().join("images"))?.mode() & 0o777,
        0o700
    );

    let mounted = Mounted::overlay(&rootfs.layers, node.dir.path())?;
    let mut names: Vec<_> = fs::read_dir(mounted.path.join("etc"))?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["passwd"],
        "the whiteout hides the lower file and is itself invisible"
    );
    assert_eq!(fs::read(mounted.path.join("top"))?, b"top");
    assert_eq!(fs::read(mounted.path.join("shared"))?, b"shared");
    Ok(())
}

#[tokio::test]
async fn an_image_may_have_a_layer_twice() -> Result<()> {
    let node = Node::new()?;
    let empty = || Layer::new(Packing::Gzip);
    let x = || {
        Layer::new(Packing::Gzip)
            .dir("d/", 0o755)
            .file("d/x", 0o644, b"x")
            .file("d/.wh.low", 0o644, b"")
    };
    let y = Layer::new(Packing::Gzip)
        .file("d/.wh.x", 0o644, b"")
        .file("d/low", 0o644, b"back")
        .file("d/y", 0o644, b"y");
    let low = Layer::new(Packing::Gzip).file("d/low", 0o644, b"low");
    let layers = [empty(), low, empty(), x(), y, x(), empty()];
    let image = layers
        .into_iter()
        .fold(ImageBuilder::new(), ImageBuilder::layer)
        .build();
    let rootfs = node.ensure(&node.layout("app", &image)?).await?;
    assert_eq!(rootfs.layers.len(), 4, "low, y, x, empty");

    let mounted = Mounted::overlay(&rootfs.layers, node.dir.path())?;
    let mut names: Vec<_> = fs::read_dir(mounted.path.join("d"))?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["x", "y"], "the upper copy counts, its marks too");
    Ok(())
}

/// A directory of the tar that belongs to somebody.
fn owned(mut layer: Layer, path: &str, mode: u32, uid: u64) -> Result<Layer> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid);
    header.set_mtime(1_600_000_000);
    header.set_size(0);
    header.set_cksum();
    layer.raw(&header, b"");
    Ok(layer)
}

#[tokio::test]
async fn directories_that_a_layer_does_not_list_are_those_of_the_layer_below() -> Result<()> {
    let node = Node::new()?;
    let base = owned(tar().dir("tmp/", 0o1777), "home/", 0o711, 5)?;
    let base = owned(base, "home/nonroot/", 0o700, 65532)?;
    let base = owned(base, "gone/", 0o700, 1)?;
    let base = owned(base, "cleared/", 0o700, 2)?;
    let base = owned(base, "again/", 0o700, 3)?;
    let base = owned(base, "late/", 0o700, 4)?;
    let middle = owned(tar().file("late/a", 0o644, b""), "late/", 0o750, 7)?
        .file(".wh.gone", 0o644, b"")
        .file("cleared/.wh..wh..opq", 0o644, b"")
        .file("home/nonroot/middle", 0o644, b"");
    let top = || {
        let layer = tar()
            .file("home/nonroot/app.jar", 0o644, b"jar")
            .file("tmp/x", 0o644, b"")
            .file("gone/x", 0o644, b"")
            .file("late/b", 0o644, b"")
            .file("new/deep/x", 0o644, b"");
        owned(layer, "again/", 0o755, 0)
    };
    let image = ImageBuilder::new()
        .layer(base)
        .layer(middle)
        .layer(top()?)
        .build();
    let reference = node.layout("app", &image)?;
    let rootfs = node.ensure(&reference).await?;
    assert_eq!(rootfs.layers.len(), 4, "three, and one of its own");
    let seen = |layers: &[PathBuf]| -> Result<[(u32, u32); 8]> {
        let mounted = Mounted::overlay(layers, node.dir.path())?;
        let paths = [
            "home",
            "home/nonroot",
            "tmp",
            "gone",
            "cleared",
            "again",
            "late",
            "new/deep",
        ];
        let seen = paths.map(|path| {
            let stat = fs::metadata(mounted.path.join(path));
            stat.map_or((0, 0), |stat| (stat.mode() & 0o7777, stat.uid()))
        });
        let jar = fs::read(mounted.path.join("home/nonroot/app.jar"))?;
        assert_eq!(jar, b"jar");
        assert!(mounted.path.join("late/b").exists());
        let time = fs::metadata(mounted.path.join("home"));
        assert!(layers.len() < 4 || time.is_ok_and(|stat| stat.mtime() == 1_600_000_000));
        Ok(seen)
    };
    let expected = [
        (0o711, 5),
        (0o700, 65532),
        (0o1777, 0),
        // Made anew by the top layer.
        (0o755, 0),
        (0o700, 2),
        // Listed.
        (0o755, 0),
        (0o750, 7),
        (0o755, 0),
    ];
    assert_eq!(seen(&rootfs.layers)?, expected);
    fs::remove_dir(node.dir.path().join("mounted"))?;

    // The same layer over others, and over none that says anything: there it needs nothing.
    let lower = owned(tar(), "home/nonroot/", 0o750, 9)?.dir("tmp/", 0o1700);
    let other = ImageBuilder::new().layer(lower).layer(top()?).build();
    let other = node.ensure(&node.layout("other", &other)?).await?;
    assert_eq!(other.layers[1], rootfs.layers[2]);
    assert_eq!(seen(&other.layers)?[..3], [(0o755, 0), (0o750, 9), (0o1700, 0)]);
    let alone = ImageBuilder::new().layer(top()?).build();
    let alone = node.ensure(&node.layout("alone", &alone)?).await?;
    assert_eq!(alone.layers, [rootfs.layers[2].clone()]);

    // What is here is used as it is, without the layouts too, and goes with its image.
    fs::remove_dir_all(node.dir.path().join("layouts"))?;
    assert_eq!(
        Node::open(node.dir.path())?.look(&reference, &Keyring::anonymous())?,
        Some(rootfs.clone())
    );
    let own = rootfs.layers[3].parent().context("no parent")?.to_owned();
    drop((other, alone));
    node.collect_all().await?;
    assert_eq!(
        fs::read_dir(node.dir.path().join("images/layers"))?.count(),
        4,
        "in use"
    );
    drop(rootfs);
    node.collect_all().await?;
    assert!(!own.exists());
    assert_eq!(fs::read_dir(node.dir.path().join("images/layers"))?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn layers_are_shared_and_removed_when_unused() -> Result<()> {
    let node = Node::new()?;
    let with_top = |text: &str| {
        let top = Layer::new(Packing::Tar).file("top", 0o644, text.as_bytes());
        ImageBuilder::new().layer(shared_layer()).layer(top).build()
    };
    let (one, two) = (with_top("one"), with_top("two"));
    let (first, second) = (node.layout("one", &one)?, node.layout("two", &two)?);
    let (first, second) = (node.ensure(&first).await?, node.ensure(&second).await?);
    assert_eq!(first.layers[0], second.layers[0]);
    let blobs = node.dir.path().join("images/blobs/blobs/sha256");
    assert_eq!(
        fs::read_dir(&blobs)?.count(),
        4,
        "manifests and configurations; layers are kept unpacked only"
    );
    assert_ne!(first.layers[1], second.layers[1]);

    // In use, or said to be, it stays.
    let dropped = node.collect_all().await?;
    assert_eq!((dropped.images, first.layers[1].is_dir()), (0, true));
    let (gone, shared) = (first.layers[1].clone(), first.layers[0].clone());
    drop(first);
    let in_use = BTreeSet::from([two.digest()]);
    let collected = node.store.collect(&in_use, u64::MAX, Duration::ZERO).await?;
    assert_eq!(
        (collected.images, collected.bytes),
        (1, 3),
        "the shared layer stays"
    );
    assert!(second.layers.iter().all(|layer| layer.is_dir()));
    assert!(!gone.exists() && shared.is_dir());
    // Without the layouts, only what the store itself has can be used: also after a restart.
    fs::remove_dir_all(node.dir.path().join("layouts"))?;
    let reopened = Node {
        store: Node::open(node.dir.path())?,
        dir: tempfile::tempdir()?,
    };
    let reference: ImageRef = format!("oci-layout.local/two@{}", two.digest()).parse()?;
    assert_eq!(reopened.ensure(&reference).await?, second);
    drop(second);
    node.collect_all().await?;
    assert_eq!(fs::read_dir(node.dir.path().join("images/layers"))?.count(), 0);
    assert_eq!(
        fs::read_dir(node.dir.path().join("images/blobs/blobs/sha256"))?.count(),
        0
    );
    Ok(())
}

#[tokio::test]
async fn many_pods_of_one_image_unpack_it_once() -> Result<()> {
    let node = Arc::new(Node::new()?);
    let image = ImageBuilder::new().layer(shared_layer()).build();
    let reference = node.layout("app", &image)?;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (node, reference) = (Arc::clone(&node), reference.clone());
            tokio::spawn(async move { node.ensure(&reference).await })
        })
        .collect();
    for task in tasks {
        assert!(task.await??.layers[0].join("shared").is_file());
    }
    assert_eq!(fs::read_dir(node.dir.path().join("images/unpacking"))?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_image_claims_is_not_used() -> Result<()> {
    let node = Node::new()?;
    let forged = ImageBuilder::new()
        .layer(shared_layer())
        .forge_diff_id(0, Digest::of(b"other"))
        .build();
    let error = node.ensure(&node.layout("forged", &forged)?).await.unwrap_err();
    assert!(matches!(error, ImageError::DiffId { .. }), "{error}");
    let hostile = ImageBuilder::new()
        .layer(Layer::new(Packing::Gzip).file("../escape", 0o644, b"x"))
        .build();
    let error = node.ensure(&node.layout("hostile", &hostile)?).await.unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error}");
    for dir in ["layers", "unpacking"] {
        assert_eq!(
            fs::read_dir(node.dir.path().join("images").join(dir))?.count(),
            0,
            "{dir}"
        );
    }
    let tag = "oci-layout.local/forged:1".parse()?;
    assert!(
        matches!(node.ensure(&tag).await, Err(ImageError::Fetch { .. })),
        "a tag is not enough"
    );
    Ok(())
}

fn keys(origin: &str, registry: &Registry) -> Result<Keyring> {
    let mut keys = Keyring::anonymous();
    keys.add(&PullSecret {
        origin: origin.to_owned(),
        form: SecretForm::ConfigJson,
        content: Registry::docker_config(registry.address()).as_bytes(),
    })?;
    Ok(keys)
}

#[tokio::test]
async fn an_image_that_came_by_a_secret_is_not_for_those_without_it() -> Result<()> {
    let (node, registry) = (Node::new()?, Registry::start_private()?);
    let image = ImageBuilder::new().layer(shared_layer()).build();
    let reference = registry
        .push(&image, "team/app", "1")
        .await?
        .pinned(image.digest());
    let (own, renewed) = (keys("own/1", &registry)?, keys("own/2", &registry)?);
    let pulled = node.pull(&reference, &own).await?;
    let size: usize = image
        .blobs()
        .chain([&image.manifest])
        .map(|blob| blob.bytes.len())
        .sum();
    assert_eq!(pulled.size, size as u64);
    assert!(node.store.look(&reference, &own)?.is_some());
    // All of it is here. Others have to ask, and the registry says no.
    let nobody = Keyring::anonymous();
    assert_eq!(node.store.look(&reference, &nobody)?, None);
    let error = node.pull(&reference, &nobody).await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch { .. }), "{error}");
    // Another secret that is good is believed after it was asked for once.
    assert_eq!(node.store.look(&reference, &renewed)?, None);
    node.pull(&reference, &renewed).await?;
    assert!(node.store.look(&reference, &renewed)?.is_some());
    // No password is in any file of the store.
    let mut open = vec![node.dir.path().join("images")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        } else if path.is_file() {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            assert!(!text.contains(testkit::registry::PASSWORD), "{}", path.display());
        }
    }
    // The agent's next life knows it still; what the registry does not have any more needs no registry.
    drop(registry);
    let reopened = Node::open(node.dir.path())?;
    assert!(reopened.look(&reference, &own)?.is_some() && reopened.look(&reference, &nobody)?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_lists_a_layer_is_no_proof_of_having_it() -> Result<()> {
    let (node, private, open) = (Node::new()?, Registry::start_private()?, Registry::start()?);
    let victim = ImageBuilder::new().layer(shared_layer()).build();
    let reference = private
        .push(&victim, "team/app", "1")
        .await?
        .pinned(victim.digest());
    let own = keys("own/1", &private)?;
    let pulled = node.pull(&reference, &own).await?;
    let layer = pulled.rootfs.layers[0].clone();

    // Somebody who knows the digests serves a manifest that lists the layer, and does not have it.
    let thief = ImageBuilder::new()
        .layer(shared_layer())
        .container(serde_json::json!({"Cmd": ["/bin/cat"]}))
        .build();
    let stolen = open.push(&thief, "evil/app", "1").await?.pinned(thief.digest());
    let hex = thief.layers[0].digest.hex();
    let data = open.store().join(format!(
        "docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let bytes = fs::read(&data)?;
    fs::remove_file(&data)?;
    let nobody = Keyring::anonymous();
    assert!(
        node.pull(&stolen, &nobody).await.is_err(),
        "the layer was given away"
    );
    assert_eq!(node.store.look(&stolen, &nobody)?, None);
    // Who sends all of it has it, and it is not unpacked twice.
    fs::write(&data, bytes)?;
    assert_eq!(node.pull(&stolen, &nobody).await?.rootfs.layers, [layer]);
    Ok(())
}

#[tokio::test]
async fn what_an_earlier_run_left_half_done_goes() -> Result<()> {
    let node = Node::new()?;
    let image = ImageBuilder::new().layer(shared_layer()).build();
    let reference = node.layout("app", &image)?;
    let rootfs = node.ensure(&reference).await?;
    let images = node.dir.path().join("images");
    // Deeper than any walk with a descriptor for each level.
    let mut deep = images.join("unpacking/deep");
    fs::create_dir(&deep)?;
    for _ in 0..300 {
        deep.push("d");
        fs::create_dir(&deep)?;
    }
    fs::write(images.join("blobs/incoming/part"), "half")?;
    // A layer of another boot that was not on disk for sure.
    let layer = rootfs.layers[0].parent().context("no parent")?.to_owned();
    while layer.join("unsettled").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fs::write(layer.join("unsettled"), "another boot")?;
    drop(rootfs);
    let reopened = Node::open(node.dir.path())?;
    assert_eq!(fs::read_dir(images.join("unpacking"))?.count(), 0);
    assert_eq!(fs::read_dir(images.join("blobs/incoming"))?.count(), 0);
    assert!(!layer.exists());
    assert_eq!(reopened.look(&reference, &Keyring::anonymous())?, None);
    let (nobody, progress) = (Keyring::anonymous(), Progress::default());
    let again = reopened.pull(&reference, &nobody, false, &progress).await?;
    assert!(again.rootfs.layers[0].join("shared").is_file());
    // A layer that no image has.
    let lost = images.join("layers").join(Digest::of(b"lost").hex());
    fs::create_dir_all(lost.join("fs"))?;
    reopened
        .collect(&BTreeSet::from([image.digest()]), 0, Duration::ZERO)
        .await?;
    assert!(!lost.exists());
    assert!(again.rootfs.layers.iter().all(|layer| layer.is_dir()));
    Ok(())
}

/// An overlay mount that goes away with the value.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn overlay(layers: &[PathBuf], dir: &Path) -> Result<Self> {
        let path = dir.join("mounted");
        fs::create_dir(&path)?;
        let lower: Vec<_> = layers
            .iter()
            .rev()
            .map(|layer| layer.display().to_string())
            .collect();
        let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":")))?;
        rustix::mount::mount(
            "overlay",
            &path,
            "overlay",
            rustix::mount::MountFlags::RDONLY,
            options.as_c_str(),
        )?;
        Ok(Self { path })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        assert_eq!(unmounted, Ok(()));
    }
}
