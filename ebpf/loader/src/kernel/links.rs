//! What keeps the programs on an interface, pinned as `INTERFACE-DIRECTION`: tcx links where the kernel has them. Where
//! it has not, filters of the clsact discipline, which live as long as the interface; their pins are the programs, and
//! tell the next agent where to look.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use crate::{
    Attachment, DatapathError,
    kernel::{link_layer::LinkLayer, pins::failed},
    sys::{self, TcxHook},
    tc::{Filter, Side},
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
    /// As [`Hook::FromHost`], where packets have no link header.
    FromHostL3,
    /// As [`Hook::ToHost`], where packets have no link header.
    ToHostL3,
}

impl Hook {
    /// All hooks.
    pub(crate) const ALL: [Self; 6] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromHost,
        Self::ToHost,
        Self::FromHostL3,
        Self::ToHostL3,
    ];
    /// Those of a pod's link.
    pub(crate) const POD: [Self; 2] = [Self::FromPod, Self::ToPod];
    /// Those of an interface of the host: one pair or the other.
    pub(crate) const HOST: [[Self; 2]; 2] =
        [Self::of_host(LinkLayer::Ethernet), Self::of_host(LinkLayer::Bare)];

    /// Those of an interface of the host whose packets begin with this.
    pub(crate) const fn of_host(link_layer: LinkLayer) -> [Self; 2] {
        match link_layer {
            LinkLayer::Ethernet => [Self::FromHost, Self::ToHost],
            LinkLayer::Bare => [Self::FromHostL3, Self::ToHostL3],
        }
    }

    /// Name of the program in the object.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromHost => "from_host",
            Self::ToHost => "to_host",
            Self::FromHostL3 => "from_host_l3",
            Self::ToHostL3 => "to_host_l3",
        }
    }

    /// Name of the pin, after the interface.
    const fn word(self) -> &'static str {
        match self {
            Self::FromPod => "from-pod",
            Self::ToPod => "to-pod",
            Self::FromHost => "from-host",
            Self::ToHost => "to-host",
            Self::FromHostL3 => "from-host-l3",
            Self::ToHostL3 => "to-host-l3",
        }
    }

    /// What a pod sends arrives on the host's side of its link.
    const fn tcx(self) -> TcxHook {
        match self {
            Self::FromPod | Self::ToHost | Self::ToHostL3 => TcxHook::Ingress,
            Self::ToPod | Self::FromHost | Self::FromHostL3 => TcxHook::Egress,
        }
    }

    /// The filter of this hook. Its handle is `pal` and the hook's number.
    const fn filter(self, ifindex: u32) -> Filter<'static> {
        let (number, name) = match self {
            Self::FromPod => (1, "palisade_from_pod"),
            Self::ToPod => (2, "palisade_to_pod"),
            Self::FromHost => (3, "palisade_from_host"),
            Self::ToHost => (4, "palisade_to_host"),
            Self::FromHostL3 => (5, "palisade_from_host_l3"),
            Self::ToHostL3 => (6, "palisade_to_host_l3"),
        };
        let side = match self.tcx() {
            TcxHook::Ingress => Side::Ingress,
            TcxHook::Egress => Side::Egress,
        };
        Filter {
            ifindex,
            side,
            handle: 0x7061_6c00 + number,
            name,
        }
    }
}

/// The directory of pins.
#[derive(Debug)]
pub(crate) struct Links {
    directory: PathBuf,
    attachment: Attachment,
}

impl Links {
    pub(crate) fn new(directory: PathBuf, attachment: Attachment) -> Self {
        Self {
            directory,
            attachment,
        }
    }

    /// Refuses pins of the other way to attach: they are links there and programs here, or the reverse, and what they
    /// keep attached would be taken for gone.
    pub(crate) fn check(&self) -> Result<(), DatapathError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for entry in entries {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            let Some(pinned) = sys::open_pinned(&path).map_err(failed("open", &path))? else {
                continue;
            };
            let is_link = sys::is_link(pinned.as_fd()).map_err(failed("inspect", &path))?;
            if is_link != (self.attachment == Attachment::Tcx) {
                return Err(DatapathError::Attached {
                    path,
                    wanted: self.attachment,
                });
            }
        }
        Ok(())
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
        let at = |operation| link_failed(operation, ifindex);
        match self.attachment {
            Attachment::Tcx => {
                let link = sys::attach_tcx(program, ifindex, hook.tcx()).map_err(at("attach"))?;
                sys::pin(link.as_fd(), &self.path(hook, ifindex)).map_err(at("pin"))
            }
            Attachment::Clsact => {
                // The pin comes first: a filter without one would be found by nobody.
                sys::pin(program, &self.path(hook, ifindex)).map_err(at("pin"))?;
                hook.filter(ifindex).set(program).map_err(|source| {
                    // A pin without a filter is removed by whoever finds it.
                    drop(self.remove_pin(hook, ifindex));
                    at("attach")(source)
                })
            }
        }
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

    /// Interfaces that have a pinned link of the hook, those that are gone among them.
    pub(crate) fn pinned(&self, hook: Hook) -> Result<Vec<u32>, DatapathError> {
        let mut interfaces = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed("list", &self.directory))? {
            let name = entry.map_err(failed("list", &self.directory))?.file_name();
            interfaces.extend(name.to_str().and_then(|name| interface_of(name, hook)));
        }
        Ok(interfaces)
    }

    /// Moves all links of one hook to `program` and removes pins of links whose interface is gone.
    pub(crate) fn replace_programs(&self, hook: Hook, program: BorrowedFd<'_>) -> Result<(), DatapathError> {
        for ifindex in self.pinned(hook)? {
            if !self.lives(hook, ifindex)? {
                self.detach_hook(hook, ifindex)?;
                continue;
            }
            self.replace_program(hook, ifindex, program)
                .map_err(link_failed("replace", ifindex))?;
        }
        Ok(())
    }

    fn replace_program(&self, hook: Hook, ifindex: u32, program: BorrowedFd<'_>) -> io::Result<()> {
        let path = self.path(hook, ifindex);
        match self.attachment {
            Attachment::Tcx => match sys::open_pinned(&path)? {
                Some(link) => sys::replace_program(link.as_fd(), program),
                None => Ok(()),
            },
            Attachment::Clsact => {
                hook.filter(ifindex).set(program)?;
                // In one step, so that the filter has a pin at all times; the old program goes with the old pin.
                let new = self.directory.join("new");
                match fs::remove_file(&new) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                sys::pin(program, &new)?;
                fs::rename(&new, &path)
            }
        }
    }

    fn lives(&self, hook: Hook, ifindex: u32) -> Result<bool, DatapathError> {
        let at = link_failed("inspect", ifindex);
        let Some(pinned) = sys::open_pinned(&self.path(hook, ifindex)).map_err(&at)? else {
            return Ok(false);
        };
        match self.attachment {
            Attachment::Tcx => {
                let of = sys::link_ifindex(pinned.as_fd()).map_err(at)?;
                Ok(of == Some(ifindex))
            }
            Attachment::Clsact => hook.filter(ifindex).is_there().map_err(at),
        }
    }

    fn detach_hook(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let at = link_failed("detach", ifindex);
        let Some(pinned) = sys::open_pinned(&self.path(hook, ifindex)).map_err(&at)? else {
            return Ok(());
        };
        match self.attachment {
            // Removing the pin alone would leave the program running until the kernel has freed the link.
            Attachment::Tcx => match sys::detach(pinned.as_fd()) {
                Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => return Err(at(error)),
                _ => {}
            },
            Attachment::Clsact => hook.filter(ifindex).remove().map_err(at)?,
        }
        self.remove_pin(hook, ifindex)
    }

    fn remove_pin(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.path(hook, ifindex);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.directory.join(format!("{ifindex}-{}", hook.word()))
    }
}

fn link_failed(operation: &'static str, ifindex: u32) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Link {
        operation,
        ifindex,
        source,
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
        let links = Links::new("links".into(), Attachment::Tcx);
        for hook in Hook::ALL {
            let path = links.path(hook, 42);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert_eq!(interface_of(name, hook), Some(42));
        }
        assert_eq!(interface_of("42-to-pod", Hook::FromPod), None);
        assert_eq!(interface_of("x-to-pod", Hook::ToPod), None);
    }
}
