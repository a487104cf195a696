//! Whom an image's `USER` means: names are looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::Read,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::{ImageError, io_error, union};

/// Larger account files are refused; the largest seen in common images have some 10 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Links that are followed to one file, as many as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Numeric identity inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups of which the user is a member.
    pub supplementary: Vec<u32>,
}

/// Resolves `user[:group]`, names or numbers: no user means root, a number without an account has group 0. The user's
/// memberships count also beside an explicit group, as Kubernetes merges them (Docker drops them).
pub(crate) fn resolve(layers: &[PathBuf], spec: &str) -> Result<UserIds, ImageError> {
    let unknown = |what| ImageError::UnknownUser {
        user: spec.to_owned(),
        what,
    };
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if user.is_empty() && group.is_none() {
        return of_number(layers, 0);
    }
    let passwd = read_file(layers, "etc/passwd")?;
    let mut accounts = passwd.lines().filter_map(Account::parse);
    let account = accounts.find(|account| account.is(user));
    let uid = match (&account, user.parse()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(unknown("user")),
    };
    let groups = read_file(layers, "etc/group")?;
    let groups: Vec<Group<'_>> = groups.lines().filter_map(Group::parse).collect();
    let gid = match group {
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(group) => {
            let named = groups.iter().find(|candidate| candidate.name == group);
            let gid = named.map(|found| found.gid).or_else(|| group.parse().ok());
            gid.ok_or_else(|| unknown("group"))?
        }
    };
    Ok(UserIds {
        uid,
        gid,
        supplementary: memberships(&groups, account.as_ref(), gid),
    })
}

/// The user of that number with the groups of its account, if the image has one. Names do not count: an account that is
/// called like a number does not take its place.
pub(crate) fn of_number(layers: &[PathBuf], uid: u32) -> Result<UserIds, ImageError> {
    let passwd = read_file(layers, "etc/passwd")?;
    let mut accounts = passwd.lines().filter_map(Account::parse);
    let account = accounts.find(|account| account.uid == uid);
    let gid = account.as_ref().map_or(0, |account| account.gid);
    let groups = read_file(layers, "etc/group")?;
    let groups: Vec<Group<'_>> = groups.lines().filter_map(Group::parse).collect();
    Ok(UserIds {
        uid,
        gid,
        supplementary: memberships(&groups, account.as_ref(), gid),
    })
}

fn memberships(groups: &[Group<'_>], account: Option<&Account<'_>>, gid: u32) -> Vec<u32> {
    let Some(account) = account else { return Vec::new() };
    let is_member = |group: &&Group<'_>| {
        group.gid != gid && group.members.split(',').any(|member| member == account.name)
    };
    let mut found: Vec<u32> = groups.iter().filter(is_member).map(|group| group.gid).collect();
    found.sort_unstable();
    found.dedup();
    found
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            uid,
            gid: fields.next()?.parse().ok()?,
        })
    }

    fn is(&self, user: &str) -> bool {
        self.name == user || user.parse() == Ok(self.uid)
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

/// Content of a file of the image, as overlayfs would show it; empty if there is none.
fn read_file(layers: &[PathBuf], path: &str) -> Result<String, ImageError> {
    let Some((layer, path)) = find(layers, Path::new(path))? else {
        return Ok(String::new());
    };
    let io = |source| io_error("read", &layer.join(&path), source);
    let root = crate::unpack::open_root(layer).map_err(io)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Not blocking, in case the image has a pipe there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(&root, &path, flags, Mode::empty(), resolve);
    let file = std::fs::File::from(file.map_err(|errno| io(errno.into()))?);
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The layer that has the regular file that the path leads to, and its path there. Links are followed over all layers, and
/// stay in the image.
fn find<'a>(layers: &'a [PathBuf], path: &Path) -> Result<Option<(&'a Path, PathBuf)>, ImageError> {
    let names = |path: &Path| -> Vec<OsString> {
        let names = path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        });
        names.collect()
    };
    let mut pending: VecDeque<OsString> = names(path).into();
    let (mut done, mut links, mut layer) = (PathBuf::new(), 0, None);
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            done.pop();
            continue;
        }
        let next = done.join(name);
        let Some((found, kind)) = topmost(layers, &next)? else {
            return Ok(None);
        };
        if kind != FileType::Symlink {
            (done, layer) = (next, (kind == FileType::RegularFile).then_some(found));
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Ok(None);
        }
        let at = found.join(&next);
        let target = std::fs::read_link(&at).map_err(|source| io_error("read", &at, source))?;
        if target.is_absolute() {
            done.clear();
        }
        for name in names(&target).into_iter().rev() {
            pending.push_front(name);
        }
    }
    Ok(layer.map(|layer| (layer, done)))
}

/// The highest layer that has the path, unless one above it hides that. No component but the last may be a link.
fn topmost<'a>(layers: &'a [PathBuf], path: &Path) -> Result<Option<(&'a Path, FileType)>, ImageError> {
    let found = union::at(layers, path)?;
    let first = found.first().map(|entry| (entry.layer, entry.kind()));
    Ok(first.and_then(|(layer, kind)| Some((layers.get(layer)?.as_path(), kind))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let layers = vec![dir.path().join("low"), dir.path().join("high")];
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(layers[0].join("etc/passwd"), "old:x:1:1::/:\n").unwrap();
        std::fs::write(
            layers[0].join("etc/group"),
            "web:x:33:\nlog:x:4:syslog,app,root\nown:x:1000:app\n",
        )
        .unwrap();
        std::fs::write(
            layers[1].join("etc/passwd"),
            "broken\napp:x:1000:1000:App:/home/app:/bin/sh\nroot:x:0:0::/root:\n5:x:0:0::/:\n",
        )
        .unwrap();
        (dir, layers)
    }

    #[test]
    fn names_and_numbers_mean_what_docker_means() {
        let (_dir, layers) = layers();
        let ids = |uid, gid, supplementary: &[u32]| UserIds {
            uid,
            gid,
            supplementary: supplementary.to_vec(),
        };
        for (spec, expected) in [
            ("", ids(0, 0, &[4])),
            ("app", ids(1000, 1000, &[4])),
            ("1000", ids(1000, 1000, &[4])),
            ("4711", ids(4711, 0, &[])),
            ("app:web", ids(1000, 33, &[4, 1000])),
            ("7:8", ids(7, 8, &[])),
        ] {
            assert_eq!(resolve(&layers, spec).unwrap(), expected, "{spec:?}");
        }
        assert!(
            resolve(&layers, "old").is_err(),
            "a lower layer's file is hidden by a higher one"
        );
        assert!(resolve(&layers, "app:nobody").is_err());
    }

    #[test]
    fn a_number_is_nobody_elses_name() {
        let (_dir, layers) = layers();
        assert_eq!(
            of_number(&layers, 1000).unwrap(),
            resolve(&layers, "app").unwrap()
        );
        let nobody = UserIds {
            uid: 5,
            ..UserIds::default()
        };
        assert_eq!(of_number(&layers, 5).unwrap(), nobody);
    }

    #[test]
    fn what_a_layer_has_deleted_is_nobodys_account() {
        use rustix::fs::{XattrFlags, setxattr};
        let hides = |hide: fn(&Path)| {
            let (_dir, layers) = layers();
            std::fs::remove_file(layers[1].join("etc/passwd")).unwrap();
            assert!(resolve(&layers, "old").is_ok(), "the lower layer's shows");
            hide(&layers[1]);
            assert!(resolve(&layers, "old").is_err());
            assert_eq!(resolve(&layers, "1").unwrap().gid, 0);
        };
        hides(|layer| whiteout_at(layer, "etc/passwd"));
        hides(|layer| {
            std::fs::remove_dir(layer.join("etc")).unwrap();
            whiteout_at(layer, "etc");
        });
        hides(|layer| {
            setxattr(
                layer.join("etc"),
                "trusted.overlay.opaque",
                b"y",
                XattrFlags::empty(),
            )
            .unwrap();
        });
        hides(|layer| std::fs::create_dir(layer.join("etc/passwd")).unwrap());
    }

    fn whiteout_at(layer: &Path, path: &str) {
        use rustix::fs::{CWD, makedev, mknodat};
        let device = makedev(0, 0);
        mknodat(
            CWD,
            layer.join(path),
            FileType::CharacterDevice,
            Mode::empty(),
            device,
        )
        .unwrap();
    }

    #[test]
    fn a_link_is_followed_over_all_layers() {
        let (_dir, layers) = layers();
        std::fs::remove_file(layers[1].join("etc/passwd")).unwrap();
        std::fs::create_dir_all(layers[0].join("usr/share")).unwrap();
        std::fs::write(layers[0].join("usr/share/passwd"), "linked:x:6:7::/:\n").unwrap();
        std::os::unix::fs::symlink("../usr/share/passwd", layers[1].join("etc/passwd")).unwrap();
        assert_eq!(resolve(&layers, "linked").unwrap().gid, 7);
        std::fs::remove_file(layers[1].join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("passwd", layers[1].join("etc/passwd")).unwrap();
        assert!(resolve(&layers, "linked").is_err(), "a loop");
    }

    #[test]
    fn a_link_in_the_image_stays_in_the_image() {
        let (_dir, layers) = layers();
        std::fs::remove_file(layers[1].join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/../../../../etc/passwd", layers[1].join("etc/passwd")).unwrap();
        assert_eq!(resolve(&layers, "0").unwrap(), UserIds::default());
        assert!(
            resolve(&layers, "root").is_err(),
            "the machine's own accounts are not the image's"
        );
    }
}
