//! What overlayfs would show of a stack of layers, found without mounting it. Reads attributes only.

use std::path::{Path, PathBuf};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use crate::{ImageError, io_error, unpack};

/// What one layer has at a path.
pub(crate) struct Entry {
    /// Place of the layer in the stack, the lowest being 0.
    pub(crate) layer: usize,
    pub(crate) stat: Stat,
}

impl Entry {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// What the layers (lowest first) have at `path`, the topmost first, down to where a higher layer hides the lower ones: by a
/// whiteout, by something else than a directory there or on the way, or by a directory on the way that is opaque. The first
/// one is what the union shows. An opaque mark of the directory itself hides what is in it, not what lower layers say of it.
/// No component but the last may be a link.
pub(crate) fn at(layers: &[PathBuf], path: &Path) -> Result<Vec<Entry>, ImageError> {
    let mut prefixes: Vec<&Path> = path
        .ancestors()
        .filter(|prefix| *prefix != Path::new(""))
        .collect();
    prefixes.reverse();
    let mut found = Vec::new();
    for (index, layer) in layers.iter().enumerate().rev() {
        let (stat, shows_below) = look(layer, &prefixes)?;
        found.extend(stat.map(|stat| Entry { layer: index, stat }));
        if !shows_below {
            break;
        }
    }
    Ok(found)
}

/// What a layer has at the last of `prefixes`, and whether what is below the layer shows there.
fn look(layer: &Path, prefixes: &[&Path]) -> Result<(Option<Stat>, bool), ImageError> {
    let root = unpack::open_root(layer).map_err(|source| io_error("open", layer, source))?;
    let mut is_opaque = false;
    let mut left = prefixes.len();
    for prefix in prefixes {
        left -= 1;
        let failed = |errno: Errno| io_error("look at", &layer.join(prefix), errno.into());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = match rustix::fs::openat2(&root, *prefix, flags, Mode::empty(), resolve) {
            Ok(entry) => entry,
            Err(Errno::NOENT) => return Ok((None, !is_opaque)),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = rustix::fs::fstat(&entry).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok((None, false)),
            FileType::Directory if left == 0 => return Ok((Some(stat), !is_opaque)),
            FileType::Directory => is_opaque |= is_marked_opaque(&layer.join(prefix)).map_err(failed)?,
            _ => return Ok(((left == 0).then_some(stat), false)),
        }
    }
    Ok((None, !is_opaque))
}

fn is_marked_opaque(directory: &Path) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(directory, unpack::OPAQUE_ATTRIBUTES[0], &mut value) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        // A longer value is another one.
        Err(Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}
