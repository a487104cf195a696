//! The few `bpf(2)` commands that the library does not offer in the form needed here: tcx links by interface
//! index, their state, and the shape of a map.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

// `enum bpf_cmd` of include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Run before programs that are attached already.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Where a tcx program runs: `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum TcxHook {
    /// Packets that arrive on the interface.
    Ingress = 46,
    /// Packets that leave through it.
    Egress = 47,
}

/// Shape of a map: its type, sizes and capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

/// Whether the kernel knows tcx, asked by a query on the loopback interface.
pub(crate) fn tcx_is_supported() -> io::Result<bool> {
    /// `bpf_attr.query`, all of it: the kernel refuses bytes set beyond what it knows, not zeros.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        padding: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut attr = Query {
        target_ifindex: 1,
        attach_type: TcxHook::Ingress as u32,
        ..Query::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Attaches a program, before all others on that hook. Dropping the link detaches it unless it is pinned.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate {
        prog_fd: RawFd,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        padding: u32,
        expected_revision: u64,
    }
    let mut attr = LinkCreate {
        prog_fd: program.as_raw_fd(),
        target_ifindex: ifindex,
        attach_type: hook as u32,
        flags: BPF_F_BEFORE,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the command succeeded, so it returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link; packets meet the old one or the new one, never none.
pub(crate) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct LinkUpdate {
        link_fd: RawFd,
        new_prog_fd: RawFd,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd(),
        new_prog_fd: program.as_raw_fd(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link off its interface at once, whoever still holds it.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [RawFd; 1] = [link.as_raw_fd()];
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Interface that a tcx link is attached to; `None` once the interface is gone or the link is detached.
pub(crate) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    /// `struct bpf_link_info` as far as its tcx part.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        link_type: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        tcx_ifindex: u32,
        tcx_attach_type: u32,
    }
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    Ok(Some(info.tcx_ifindex).filter(|ifindex| *ifindex != 0))
}

/// Shape of an open map.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    /// The first fields of `struct bpf_map_info`.
    #[repr(C)]
    #[derive(Default)]
    struct MapInfo {
        map_type: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let mut info = MapInfo::default();
    object_info(map, &mut info)?;
    let MapInfo {
        map_type,
        key_size,
        value_size,
        max_entries,
        ..
    } = info;
    Ok(MapShape {
        map_type,
        key_size,
        value_size,
        max_entries,
    })
}

/// Gives an object a name in the BPF file system, which keeps it alive.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectPath {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd(),
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object; `None` if there is none of that name.
pub(crate) fn open_pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = ObjectPath {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    match bpf(BPF_OBJ_GET, &mut attr) {
        // SAFETY: the command succeeded, so it returned a new descriptor that nobody else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until every program that runs now has finished its packet.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    /// `MEMBARRIER_CMD_GLOBAL` of include/uapi/linux/membarrier.h: the kernel implements it as the end of an RCU
    /// grace period, and programs run inside RCU read sections.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes integers only and has no effect but to wait.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The clock of the programs (`bpf_ktime_get_ns`): monotonic, without time spent suspended.
pub(crate) fn monotonic_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts at boot and is never negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[repr(C)]
struct ObjectPath {
    pathname: u64,
    bpf_fd: RawFd,
    file_flags: u32,
}

/// `T` must be a prefix of the object's info structure, made of integers only.
fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct GetInfo {
        bpf_fd: RawFd,
        info_len: u32,
        info: u64,
    }
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = GetInfo {
        bpf_fd: object.as_raw_fd(),
        info_len,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Calls `bpf(2)`. `T` is the part of `union bpf_attr` that `command` reads, and every pointer inside it is valid
/// for what the command reads or writes there.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is valid for reads and writes of the size passed along; the kernel takes missing trailing bytes
    // as zero. The callers above keep what the pointers inside refer to alive across the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
