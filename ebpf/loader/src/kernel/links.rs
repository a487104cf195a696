//! The links that keep the programs on an interface, pinned as `INTERFACE-DIRECTION`.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use policies_ir::tables::Direction;

use crate::{
    DatapathError,
    kernel::pins::failed,
    sys::{self, TcxHook},
};

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// The directory of pinned links.
#[derive(Debug)]
pub(crate) struct Links {
    directory: PathBuf,
}

impl Links {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Attaches `program`, unless the link lives already.
    pub(crate) fn attach(
        &self,
        direction: Direction,
        ifindex: u32,
        program: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        if self.lives(direction, ifindex)? {
            return Ok(());
        }
        self.detach_direction(direction, ifindex)?;
        let at = |operation| {
            move |source| DatapathError::Link {
                operation,
                ifindex,
                source,
            }
        };
        let link = sys::attach_tcx(program, ifindex, hook(direction)).map_err(at("attach"))?;
        sys::pin(link.as_fd(), &self.path(direction, ifindex)).map_err(at("pin"))
    }

    /// Takes the programs off the interface; nothing to do when it is gone.
    pub(crate) fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        DIRECTIONS
            .into_iter()
            .try_for_each(|direction| self.detach_direction(direction, ifindex))
    }

    /// Whether both directions are judged.
    pub(crate) fn is_attached(&self, ifindex: u32) -> Result<bool, DatapathError> {
        for direction in DIRECTIONS {
            if !self.lives(direction, ifindex)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves all links of one direction to `program` and removes pins of links whose interface is gone.
    pub(crate) fn replace_programs(
        &self,
        direction: Direction,
        program: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for entry in entries {
            let name = entry.map_err(failed("list", &self.directory))?.file_name();
            let Some(ifindex) = name.to_str().and_then(|name| interface_of(name, direction)) else {
                continue;
            };
            if !self.lives(direction, ifindex)? {
                self.detach_direction(direction, ifindex)?;
                continue;
            }
            let at = |operation| {
                move |source| DatapathError::Link {
                    operation,
                    ifindex,
                    source,
                }
            };
            if let Some(link) = sys::open_pinned(&self.path(direction, ifindex)).map_err(at("open"))? {
                sys::replace_program(link.as_fd(), program).map_err(at("replace"))?;
            }
        }
        Ok(())
    }

    fn lives(&self, direction: Direction, ifindex: u32) -> Result<bool, DatapathError> {
        let at = |source| DatapathError::Link {
            operation: "inspect",
            ifindex,
            source,
        };
        let Some(link) = sys::open_pinned(&self.path(direction, ifindex)).map_err(at)? else {
            return Ok(false);
        };
        Ok(sys::link_ifindex(link.as_fd()).map_err(at)? == Some(ifindex))
    }

    fn detach_direction(&self, direction: Direction, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(direction, ifindex);
        let at = |source| DatapathError::Link {
            operation: "detach",
            ifindex,
            source,
        };
        let Some(link) = sys::open_pinned(&path).map_err(at)? else {
            return Ok(());
        };
        // Removing the pin alone would leave the program running until the kernel has freed the link.
        match sys::detach(link.as_fd()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => return Err(at(error)),
            _ => {}
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, direction: Direction, ifindex: u32) -> PathBuf {
        self.directory.join(format!("{ifindex}-{}", word(direction)))
    }
}

/// A packet arrives on the host side when it leaves the pod.
fn hook(direction: Direction) -> TcxHook {
    match direction {
        Direction::Egress => TcxHook::Ingress,
        Direction::Ingress => TcxHook::Egress,
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "from-pod",
        Direction::Ingress => "to-pod",
    }
}

fn interface_of(name: &str, direction: Direction) -> Option<u32> {
    let (ifindex, pinned) = name.split_once('-')?;
    if pinned == word(direction) {
        ifindex.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_tell_interface_and_direction() {
        let links = Links::new("links".into());
        for direction in DIRECTIONS {
            let path = links.path(direction, 42);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert_eq!(interface_of(name, direction), Some(42));
        }
        assert_eq!(interface_of("42-to-pod", Direction::Egress), None);
        assert_eq!(interface_of("x-to-pod", Direction::Ingress), None);
    }
}
