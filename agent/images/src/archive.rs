//! Reads the tar stream of a layer as a sequence of typed members, bounded in every direction.
//!
//! The `tar` crate parses and checks single headers; the extension headers (GNU long names, PAX) are
//! resolved here, for two reasons. They are read into memory, so they need a limit; and where two
//! headers of one member disagree about its size, readers disagree about where the next member starts,
//! which lets an archive show one content to a scanner and another to us. Such archives are refused.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use tar::{EntryType, Header};

use crate::{UnpackError, pax};

/// Longest path or link target; the kernel's PATH_MAX.
const MAX_PATH_BYTES: usize = 4096;
/// Deepest path.
const MAX_DEPTH: usize = 128;
/// Largest extension header: a path, a link target and some times and attributes fit many times over.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Extension headers before one member: GNU name, GNU link, PAX, and one to spare.
const MAX_EXTENSIONS: usize = 4;

/// Path of a member inside the layer: relative, without `.`, `..` and empty components. The root of the
/// layer is the empty path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemberPath(PathBuf);

impl MemberPath {
    /// Refuses paths that climb; leading slashes are dropped, as every reader of layers does.
    fn parse(bytes: &[u8]) -> Result<Self, UnpackError> {
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        if bytes.len() > MAX_PATH_BYTES || bytes.contains(&0) {
            return Err(UnpackError::Path {
                path: shown(),
                problem: "it is too long or contains a zero byte",
            });
        }
        let text = OsString::from_vec(bytes.to_vec());
        let mut path = PathBuf::new();
        for component in Path::new(&text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(UnpackError::Path {
                        path: shown(),
                        problem: "it leaves the layer",
                    });
                }
            }
        }
        if path.components().count() > MAX_DEPTH {
            return Err(UnpackError::Path {
                path: shown(),
                problem: "it is nested too deep",
            });
        }
        Ok(Self(path))
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// Directory and last component; `None` for the root of the layer.
    pub(crate) fn split(&self) -> Option<(&Path, &std::ffi::OsStr)> {
        Some((self.0.parent()?, self.0.file_name()?))
    }
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink {
        target: OsString,
    },
    HardLink {
        target: MemberPath,
    },
    Fifo,
    /// A device node, which layers may list but pods never get from them.
    Device,
}

/// One member of the archive; its content, if any, is read from the entry beside it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: MemberPath,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch.
    pub(crate) modified: i64,
}

/// Calls `visit` for each member with its content, in order.
pub(crate) fn for_each<R: Read>(
    tar_stream: R,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(tar_stream);
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(read_error)?.raw(true) {
        let mut entry = entry.map_err(read_error)?;
        if extensions.absorb(&mut entry)? {
            continue;
        }
        let extensions = std::mem::take(&mut extensions);
        if let Some(member) = extensions.apply(entry.header(), entry.size())? {
            visit(member, &mut entry)?;
        }
    }
    match extensions.count {
        0 => Ok(()),
        _ => Err(UnpackError::Archive {
            problem: "it ends after an extension header".to_owned(),
        }),
    }
}

/// What the extension headers before a member say about it.
#[derive(Default)]
struct Extensions {
    count: usize,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<i64>,
}

impl Extensions {
    /// Takes in an extension header; `false` if the entry is not one.
    fn absorb<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, UnpackError> {
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            return Ok(false);
        }
        self.count += 1;
        if self.count > MAX_EXTENSIONS || entry.size() > MAX_EXTENSION_BYTES {
            return Err(UnpackError::Archive {
                problem: "its extension headers are too many or too large".to_owned(),
            });
        }
        let mut data = Vec::new();
        entry.read_to_end(&mut data).map_err(read_error)?;
        if data.len() as u64 != entry.size() {
            return Err(UnpackError::Archive {
                problem: "it ends inside an extension header".to_owned(),
            });
        }
        match kind {
            EntryType::GNULongName => set_once(&mut self.path, without_trailing_zero(data), "GNU long name")?,
            EntryType::GNULongLink => set_once(&mut self.link, without_trailing_zero(data), "GNU long link")?,
            EntryType::XHeader => self.absorb_pax(&data)?,
            // Global headers carry comments (git writes them); one that renames or resizes every later
            // member is honoured by some readers only.
            _ => {
                self.count -= 1;
                let mut global = Self::default();
                global.absorb_pax(&data)?;
                if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                    return Err(UnpackError::Archive {
                        problem: "a global header renames or resizes members".to_owned(),
                    });
                }
            }
        }
        Ok(true)
    }

    fn absorb_pax(&mut self, data: &[u8]) -> Result<(), UnpackError> {
        let records = pax::records(data).ok_or_else(|| UnpackError::Archive {
            problem: "an extension header does not consist of PAX records".to_owned(),
        })?;
        for (key, value) in records {
            let bad = || UnpackError::Archive {
                problem: format!(
                    "PAX record {:?} has a value that makes no sense",
                    String::from_utf8_lossy(key)
                ),
            };
            let text = || std::str::from_utf8(value).map_err(|_utf8| bad());
            let number = || text()?.parse::<u64>().map_err(|_number| bad());
            let name = || match value {
                // To some readers it unsets the name, to others it is the name.
                b"" => Err(bad()),
                name => Ok(name.to_vec()),
            };
            let id = || number().and_then(|id| u32::try_from(id).map_err(|_large| bad()));
            match key {
                b"path" => set_once(&mut self.path, name()?, "path")?,
                b"linkpath" => set_once(&mut self.link, name()?, "linkpath")?,
                b"size" => set_once(&mut self.size, number()?, "size")?,
                b"uid" => set_once(&mut self.uid, id()?, "uid")?,
                b"gid" => set_once(&mut self.gid, id()?, "gid")?,
                b"mtime" => {
                    let seconds = text()?.split('.').next().unwrap_or_default();
                    set_once(
                        &mut self.modified,
                        seconds.parse().map_err(|_number| bad())?,
                        "mtime",
                    )?;
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(UnpackError::Archive {
                        problem: "sparse members are not supported".to_owned(),
                    });
                }
                // Extended attributes are left out on purpose: `security.*` grants privileges,
                // `trusted.overlay.*` would forge the union's own marks.
                _ => {}
            }
        }
        Ok(())
    }

    /// The member that `header` and these extensions describe; `None` for kinds without meaning here.
    fn apply(self, header: &Header, size: u64) -> Result<Option<Member>, UnpackError> {
        if self.size.is_some_and(|claimed| claimed != size) {
            return Err(UnpackError::Archive {
                problem: "two headers of one member disagree about its size".to_owned(),
            });
        }
        let path_bytes = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = MemberPath::parse(&path_bytes)?;
        let link = self
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let kind = match header.entry_type() {
            // Old archives mark a directory by a slash at the end of its name.
            EntryType::Regular | EntryType::Continuous if path_bytes.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink if !link.is_empty() && link.len() < MAX_PATH_BYTES && !link.contains(&0) => {
                Kind::Symlink {
                    target: OsString::from_vec(link),
                }
            }
            EntryType::Symlink => {
                return Err(UnpackError::Path {
                    path: path.as_path().display().to_string(),
                    problem: "it is a symbolic link to nothing or too far",
                });
            }
            EntryType::Link => Kind::HardLink {
                target: MemberPath::parse(&link)?,
            },
            EntryType::Fifo => Kind::Fifo,
            EntryType::Block | EntryType::Char => Kind::Device,
            EntryType::GNUSparse => {
                return Err(UnpackError::Archive {
                    problem: "sparse members are not supported".to_owned(),
                });
            }
            other => {
                let problem = format!("member type {:?} is not known", char::from(other.as_byte()));
                return Err(UnpackError::Archive { problem });
            }
        };
        if size > 0 && !matches!(kind, Kind::File) {
            return Err(UnpackError::Archive {
                problem: "a member that is no file has content".to_owned(),
            });
        }
        Ok(Some(Member {
            path,
            kind,
            mode: header.mode().map_err(read_error)? & 0o7777,
            uid: owner(self.uid, header.uid())?,
            gid: owner(self.gid, header.gid())?,
            modified: match self.modified {
                Some(seconds) => seconds,
                None => i64::try_from(header.mtime().map_err(read_error)?).unwrap_or(0),
            },
        }))
    }
}

fn owner(extended: Option<u32>, header: io::Result<u64>) -> Result<u32, UnpackError> {
    let id = match extended {
        Some(id) => id,
        None => u32::try_from(header.map_err(read_error)?).unwrap_or(u32::MAX),
    };
    match id {
        // -1 means "leave as it is" to chown.
        u32::MAX => Err(UnpackError::Archive {
            problem: "an owner is out of range".to_owned(),
        }),
        id => Ok(id),
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<(), UnpackError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(UnpackError::Archive {
            problem: format!("{name} is given twice for one member"),
        }),
    }
}

fn without_trailing_zero(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}

fn read_error(source: io::Error) -> UnpackError {
    UnpackError::Read { source }
}
