//! The few `bpf(2)` commands that the library does not offer in the form needed here: tcx links by interface
//! index, their state, programs that a control group keeps by itself, the shape of a map, an entry taken
//! out of one, and maps in our memory.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::AtomicU64,
    time::Duration,
};

// `enum bpf_cmd` of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Run before programs that are attached already.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Run beside programs of the same group and of those above it; all of them must allow.
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// Tell of the programs of the groups above too.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// Where a program runs that is asked about devices.
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of one group that can be told of; the kernel takes as many for each.
const MAX_CGROUP_PROGRAMS: usize = 64;

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

/// `bpf_attr.query`, all of it: the kernel refuses bytes set beyond what it knows, not zeros.
#[repr(C)]
#[derive(Default)]
struct Query {
    /// The interface, or the descriptor of the group.
    target: u32,
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

/// Whether the kernel knows tcx, asked by a query on the loopback interface.
pub(crate) fn tcx_is_supported() -> io::Result<bool> {
    let mut attr = Query {
        target: 1,
        attach_type: TcxHook::Ingress as u32,
        ..Query::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has a program asked about the devices of a control group and of those below it. There is no link: it is until the
/// group is gone.
pub(crate) fn attach_to_devices(program: BorrowedFd<'_>, group: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct ProgramAttach {
        target_fd: RawFd,
        attach_bpf_fd: RawFd,
        attach_type: u32,
        attach_flags: u32,
    }
    let mut attr = ProgramAttach {
        target_fd: group.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// Numbers of the programs that are asked about the devices of a control group.
pub(crate) fn programs_for_devices(group: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut numbers = vec![0_u32; MAX_CGROUP_PROGRAMS];
    let mut attr = Query {
        target: u32::try_from(group.as_raw_fd()).map_err(io::Error::other)?,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        prog_ids: numbers.as_mut_ptr() as u64,
        count: u32::try_from(numbers.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    numbers.truncate(usize::try_from(attr.count).map_err(io::Error::other)?);
    Ok(numbers)
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

/// Whether a BPF object is a link. The kernel's commands do not tell, the name that it gives the descriptor does.
pub(crate) fn is_link(object: BorrowedFd<'_>) -> io::Result<bool> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    // Made or opened from a pin, it has one or the other.
    let names: [&[u8]; 2] = [b"anon_inode:bpf-link", b"anon_inode:bpf_link"];
    Ok(names.contains(&name.as_os_str().as_bytes()))
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

/// `bpf_attr.batch`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: RawFd,
    elem_flags: u64,
    flags: u64,
}

/// Writes many entries with one system call. When it fails, entries before the one that failed are written.
pub(crate) fn update_many<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    entries: &[(K, V)],
) -> io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(entries.len()).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    let shape = map_shape(map)?;
    if [shape.key_size, shape.value_size].map(usize::try_from) != [Ok(size_of::<K>()), Ok(size_of::<V>())] {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The kernel refuses an empty batch on some maps.
    if entries.is_empty() {
        return Ok(());
    }
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Deletes many entries of a hash with one system call, and one more for each that is not there.
pub(crate) fn delete_many<K: aya::Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    if usize::try_from(map_shape(map)?.key_size) != Ok(size_of::<K>()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: rest.as_ptr() as u64,
            values: 0,
            count: u32::try_from(rest.len()).map_err(io::Error::other)?,
            map_fd: map.as_raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_DELETE_BATCH, &mut attr) {
            Ok(_) => break,
            // `count` says how many went before the one that is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let gone = usize::try_from(attr.count).map_err(io::Error::other)?;
                rest = rest.get(gone.saturating_add(1)..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes an entry out of a hash, with what it held at that moment.
pub(crate) fn take<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    #[repr(C)]
    struct Element {
        map_fd: RawFd,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let shape = map_shape(map)?;
    if [shape.key_size, shape.value_size].map(usize::try_from) != [Ok(size_of::<K>()), Ok(size_of::<V>())] {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = Element {
        map_fd: map.as_raw_fd(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) {
        // SAFETY: the kernel has written a whole value, of the size that the map has (checked above); a `Pod` is valid
        // whatever its bytes are.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the rest of a hash begins, as the kernel counts: a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// Some entries of a hash, and where the rest begins if there is any.
pub(crate) type Portion<K, V> = (Vec<(K, V)>, Option<Place>);

/// Reads up to `most` entries of a hash with one system call, from a place on, and says where the rest begins. Buckets are
/// read as a whole: of one that has more entries than that, all are read. An entry that stays is in one bucket all the
/// time.
pub(crate) fn lookup_many<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    from: Option<Place>,
    most: usize,
) -> io::Result<Portion<K, V>> {
    let shape = map_shape(map)?;
    if [shape.key_size, shape.value_size].map(usize::try_from) != [Ok(size_of::<K>()), Ok(size_of::<V>())] {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let all = usize::try_from(shape.max_entries).map_err(io::Error::other)?;
    let mut room = most.clamp(1, all.max(1));
    loop {
        let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
        // For a hash both are the number of a bucket, whatever the size of its keys.
        let (begin, mut next) = (from, 0_u32);
        let mut attr = Batch {
            in_batch: begin
                .as_ref()
                .map_or(0, |Place(bucket)| std::ptr::from_ref(bucket) as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: map.as_raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        let rest = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => Some(Place(next)),
            // The last bucket was among them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < all => {
                room = room.saturating_mul(2).min(all);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = usize::try_from(attr.count).map_err(io::Error::other)?.min(room);
        // SAFETY: the vectors have room for `room` elements of the map's sizes (checked above), and the kernel has written
        // the first `count` of both; any bytes are a value of a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        return Ok((keys.into_iter().zip(values).collect(), rest));
    }
}

/// Loads a tc program that passes every packet, to compare with.
pub(crate) fn load_passing_program() -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const SCHED_CLS: u32 = 3;
    /// `struct bpf_insn` as one word each: `r0 = TC_ACT_UNSPEC`, `exit`.
    const PASS: [[u8; 8]; 2] = [
        [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    const LICENSE: &std::ffi::CStr = c"Apache-2.0";
    #[repr(C)]
    struct ProgramLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let mut attr = ProgramLoad {
        prog_type: SCHED_CLS,
        insn_cnt: 2,
        insns: PASS.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the command succeeded, so it returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program on a frame and returns what one run took on average.
pub(crate) fn time_program(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Duration> {
    #[repr(C)]
    struct TestRun {
        prog_fd: RawFd,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd(),
        retval: 0,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat,
        duration: 0,
    };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(Duration::from_nanos(attr.duration.into()))
}

/// Waits until every program that runs now has finished its packet.
pub(crate) fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` of include/uapi/linux/membarrier.h: the kernel implements it as the end of an RCU
    /// grace period, and programs run inside RCU read sections.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    /// A kernel with full-dynticks CPUs refuses the command. A program takes microseconds and is not preempted.
    const LONG_ENOUGH: Duration = Duration::from_millis(50);
    // SAFETY: the call takes integers only and has no effect but to wait.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing tells when the last program has ended"
        )]
        std::thread::sleep(LONG_ENOUGH);
    }
}

/// An array map in our address space: what is stored here, programs read, without a system call. `T` consists of
/// aligned 64-bit words that programs only load, store and add to.
pub(crate) struct MappedArray<T> {
    base: NonNull<AtomicU64>,
    bytes: usize,
    element: PhantomData<T>,
}

// SAFETY: the memory is reached through atomic words only, from whichever thread.
unsafe impl<T> Send for MappedArray<T> {}

impl<T> MappedArray<T> {
    /// Maps the first `entries` elements of `map`, which must have been made with `BPF_F_MMAPABLE`.
    pub(crate) fn open(map: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(size_of::<u64>())) };
        let entries = usize::try_from(entries).map_err(io::Error::other)?;
        let bytes = entries
            .checked_mul(size_of::<T>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self {
            base,
            bytes,
            element: PhantomData,
        })
    }

    /// The 64-bit word at `offset` bytes in element `index`; `None` outside the map.
    pub(crate) fn field(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        let start = usize::try_from(index).ok()?.checked_mul(size_of::<T>())?;
        let at = start.checked_add(offset)?;
        let inside = at.checked_add(size_of::<u64>())? <= self.bytes;
        if !inside || !at.is_multiple_of(size_of::<u64>()) {
            return None;
        }
        // SAFETY: the word lies inside the mapping (checked above), which lives as long as `self`; it is aligned, since
        // mappings start at a page and `at` is a multiple of its size.
        Some(unsafe { self.base.byte_add(at).as_ref() })
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`. That it could not be unmapped would
        // leak address space, no more.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The clock of the programs (`bpf_ktime_get_ns`): monotonic, without time spent suspended.
pub(crate) fn monotonic_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts at boot and is never negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// That clock as [`monotonic_now`] was at the last tick, which is what flows are dated by (`bpf_ktime_get_coarse_ns`).
pub(crate) fn programs_now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let nanoseconds = now.tv_nsec.unsigned_abs();
    now.tv_sec
        .unsigned_abs()
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::fd::AsFd};

    use super::*;

    /// A hash of numbers (needs root).
    fn hash(max_entries: u32) -> OwnedFd {
        const BPF_MAP_CREATE: libc::c_int = 0;
        #[repr(C)]
        struct MapCreate {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
        }
        let mut attr = MapCreate {
            map_type: 1,
            key_size: 4,
            value_size: 8,
            max_entries,
        };
        let fd = bpf(BPF_MAP_CREATE, &mut attr).unwrap();
        // SAFETY: the command succeeded, so it returned a new descriptor that nobody else owns.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    #[test]
    fn a_hash_is_read_bucket_by_bucket_also_those_larger_than_asked_for() {
        let map = hash(512);
        assert_eq!(
            lookup_many::<u32, u64>(map.as_fd(), None, 8).unwrap(),
            (vec![], None)
        );
        // As many as there are buckets: some have several.
        let entries: Vec<(u32, u64)> = (0..512).map(|key| (key, u64::from(key) << 32 | 7)).collect();
        update_many(map.as_fd(), &entries).unwrap();
        for most in [1, 8, 511, 4096] {
            let (mut found, mut place) = (Vec::new(), None);
            let mut calls = 0;
            loop {
                let (some, rest) = lookup_many::<u32, u64>(map.as_fd(), place, most).unwrap();
                found.extend(some);
                calls += 1;
                place = rest;
                if place.is_none() {
                    break;
                }
            }
            assert_eq!(found.len(), entries.len(), "each once, {most} at a time");
            assert_eq!(
                found.into_iter().collect::<BTreeMap<_, _>>(),
                entries.iter().copied().collect()
            );
            assert_eq!(
                calls > 1,
                most < entries.len(),
                "{calls} calls for {most} at a time"
            );
        }
    }

    #[test]
    fn entries_of_another_shape_are_not_read() {
        let map = hash(8);
        let refused = lookup_many::<u64, u64>(map.as_fd(), None, 8).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
