//! Whom an image's `USER` means: names are looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::ImageError;

/// Larger account files are refused; the largest seen in common images have some 10 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

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
    let passwd = read_topmost(layers, "etc/passwd")?;
    let mut accounts = passwd.lines().filter_map(Account::parse);
    let account = accounts.find(|account| account.is(user));
    let uid = match (&account, user.parse()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(unknown("user")),
    };
    let groups = read_topmost(layers, "etc/group")?;
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
    let passwd = read_topmost(layers, "etc/passwd")?;
    let mut accounts = passwd.lines().filter_map(Account::parse);
    let account = accounts.find(|account| account.uid == uid);
    let gid = account.as_ref().map_or(0, |account| account.gid);
    let groups = read_topmost(layers, "etc/group")?;
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

/// Content of a file in the highest layer that has it; empty if none has.
fn read_topmost(layers: &[PathBuf], path: &str) -> Result<String, ImageError> {
    for layer in layers.iter().rev() {
        let io = |source| ImageError::Io {
            operation: "read",
            path: layer.join(path),
            source,
        };
        let root = crate::unpack::open_root(layer).map_err(io)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat2(&root, Path::new(path), flags, Mode::empty(), resolve) else {
            continue;
        };
        let file = std::fs::File::from(file);
        if !file.metadata().map_err(io)?.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(String::new())
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
