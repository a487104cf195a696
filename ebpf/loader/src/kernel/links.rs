//! The links that keep the programs on an interface, pinned as `INTERFACE-DIRECTION`.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use crate::{
    DatapathError,
    kernel::pins::failed,
    sys::{self, TcxHook},
};

/// Where one of the programs runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// On the host side of a pod's link, for what the pod sends.
    FromPod,
    /// On the host side of a pod's link, for what is sent to the pod.
    ToPod,
    /// On an interface of the host, for what leaves through it.
    FromHost,
    /// On an interface of the host, for what arrives.
    ToHost,
}

impl Hook {
    /// All hooks.
    pub(crate) const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromHost, Self::ToHost];
    /// Those of a pod's link.
    pub(crate) const POD: [Self; 2] = [Self::FromPod, Self::ToPod];
    /// Those of an interface of the host.
    pub(crate) const HOST: [Self; 2] = [Self::FromHost, Self::ToHost];

    /// Name of the program in the object.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromHost => "from_host",
            Self::ToHost => "to_host",
        }
    }

    /// Name of the pin, after the interface.
    const fn word(self) -> &'static str {
        match self {
            Self::FromPod => "from-pod",
            Self::ToPod => "to-pod",
            Self::FromHost => "from-host",
            Self::ToHost => "to-host",
        }
    }

    /// What a pod sends arrives on the host's side of its link.
    const fn tcx(self) -> TcxHook {
        match self {
            Self::FromPod | Self::ToHost => TcxHook::Ingress,
            Self::ToPod | Self::FromHost => TcxHook::Egress,
        }
    }
}

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
        hook: Hook,
        ifindex: u32,
        program: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        if self.lives(hook, ifindex)? {
            return Ok(());
        }
        self.detach_hook(hook, ifindex)?;
        let at = |operation| {
            move |source| DatapathError::Link {
                operation,
                ifindex,
                source,
            }
        };
        let link = sys::attach_tcx(program, ifindex, hook.tcx()).map_err(at("attach"))?;
        sys::pin(link.as_fd(), &self.path(hook, ifindex)).map_err(at("pin"))
    }

    /// Takes the programs off the interface; nothing to do when it is gone.
    pub(crate) fn detach(&self, hooks: [Hook; 2], ifindex: u32) -> Result<(), DatapathError> {
        hooks
            .into_iter()
            .try_for_each(|hook| self.detach_hook(hook, ifindex))
    }

    /// Whether both directions are judged.
    pub(crate) fn is_attached(&self, hooks: [Hook; 2], ifindex: u32) -> Result<bool, DatapathError> {
        for hook in hooks {
            if !self.lives(hook, ifindex)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves all links of one hook to `program` and removes pins of links whose interface is gone.
    pub(crate) fn replace_programs(&self, hook: Hook, program: BorrowedFd<'_>) -> Result<(), DatapathError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for entry in entries {
            let name = entry.map_err(failed("list", &self.directory))?.file_name();
            let Some(ifindex) = name.to_str().and_then(|name| interface_of(name, hook)) else {
                continue;
            };
            if !self.lives(hook, ifindex)? {
                self.detach_hook(hook, ifindex)?;
                continue;
            }
            let at = |operation| {
                move |source| DatapathError::Link {
                    operation,
                    ifindex,
                    source,
                }
            };
            if let Some(link) = sys::open_pinned(&self.path(hook, ifindex)).map_err(at("open"))? {
                sys::replace_program(link.as_fd(), program).map_err(at("replace"))?;
            }
        }
        Ok(())
    }

    fn lives(&self, hook: Hook, ifindex: u32) -> Result<bool, DatapathError> {
        let at = |source| DatapathError::Link {
            operation: "inspect",
            ifindex,
            source,
        };
        let Some(link) = sys::open_pinned(&self.path(hook, ifindex)).map_err(at)? else {
            return Ok(false);
        };
        Ok(sys::link_ifindex(link.as_fd()).map_err(at)? == Some(ifindex))
    }

    fn detach_hook(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(hook, ifindex);
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

    fn path(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.directory.join(format!("{ifindex}-{}", hook.word()))
    }
}

fn interface_of(name: &str, hook: Hook) -> Option<u32> {
    let (ifindex, pinned) = name.split_once('-')?;
    if pinned == hook.word() {
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
        for hook in Hook::ALL {
            let path = links.path(hook, 42);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert_eq!(interface_of(name, hook), Some(42));
        }
        assert_eq!(interface_of("42-to-pod", Hook::FromPod), None);
        assert_eq!(interface_of("x-to-pod", Hook::ToPod), None);
    }
}
