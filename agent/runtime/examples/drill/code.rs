//! Attempts to get code from what was written, which the profile `strict` stops. Each is made
//! by its name.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use crate::{Attempt, Outcome, checked, done};

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("map-writable-code", || {
        map(-1, WRITE | EXECUTE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).map(done)
    }),
    ("make-code", || {
        let memory = map(-1, READ | WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)?;
        // SAFETY: the page is this process's own and nothing refers to it.
        unsafe {
            std::ptr::copy_nonoverlapping(RETURN.as_ptr(), memory.cast(), RETURN.len());
            checked(i64::from(libc::mprotect(memory, PAGE, READ | EXECUTE)))?;
        }
        run(memory)
    }),
    ("make-code-by-memory-file", || {
        let memory = map(-1, READ | EXECUTE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)?;
        let own = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/proc/self/mem")?;
        own.write_all_at(RETURN, memory as u64)?;
        run(memory)
    }),
    ("map-anonymous-file", || {
        const MFD_NOEXEC_SEAL: libc::c_uint = 8;
        // SAFETY: a C string and a number; the new descriptor is nobody else's.
        let mut file = unsafe {
            let descriptor = checked(i64::from(libc::memfd_create(c"drill".as_ptr(), MFD_NOEXEC_SEAL)))?;
            fs::File::from_raw_fd(i32::try_from(descriptor).map_err(io::Error::other)?)
        };
        file.write_all(&page_of_code())?;
        run(map(file.as_raw_fd(), READ | EXECUTE, libc::MAP_SHARED)?)
    }),
    ("map-shared-code-fork", || {
        let memory = map(-1, READ | EXECUTE, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
        write_in_child(memory)?;
        run(memory)
    }),
    ("map-shared-code-remap", || {
        let memory = map(-1, READ | EXECUTE, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
        // SAFETY: of a shared mapping, a length of 0 leaves what is there and maps it once more, where nothing is.
        let again = unsafe { libc::mremap(memory, 0, PAGE, libc::MREMAP_MAYMOVE) };
        if again == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        write_code(again)?;
        run(memory)
    }),
    ("map-shared-code-zero", || {
        let zero = fs::OpenOptions::new().read(true).write(true).open("/dev/zero")?;
        let memory = map(zero.as_raw_fd(), READ | EXECUTE, libc::MAP_SHARED)?;
        write_in_child(memory)?;
        run(memory)
    }),
    ("map-volume", || map_written("/data/code")),
    ("map-shared-memory-file", || map_written("/dev/shm/code")),
    ("map-temporary-file", || map_written("/tmp/code")),
    ("attach-code", || {
        const SHM_EXEC: libc::c_int = 0x8000;
        // SAFETY: numbers and a null pointer; what is attached is not used.
        let attached = unsafe {
            let segment = checked(i64::from(libc::shmget(
                libc::IPC_PRIVATE,
                PAGE,
                libc::IPC_CREAT | 0o700,
            )))?;
            let segment = i32::try_from(segment).map_err(io::Error::other)?;
            let attached = libc::shmat(segment, std::ptr::null(), SHM_EXEC | libc::SHM_RDONLY);
            let error = io::Error::last_os_error();
            libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut());
            if attached as isize == -1 {
                Err(error)
            } else {
                Ok(())
            }
        };
        attached.map(done)
    }),
    ("exec-descriptor", || {
        let file = fs::File::open("/bin/busybox")?;
        crate::files::execute_descriptor(file.as_raw_fd())
    }),
    ("loader-volume", || {
        // What an image's own loader does with a file that is not executable: it maps it as code.
        fs::copy("/bin/drill", "/data/plain")?;
        let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
        let loader = loader
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false))
            .unwrap_or("/none");
        let ran = std::process::Command::new(loader)
            .args(["/data/plain", "whoami"])
            .output()?;
        Ok(if ran.status.success() {
            Outcome::Done
        } else {
            Outcome::Saw("the loader could not map it")
        })
    }),
    ("write-image", || fs::write("/etc/drill", "x").map(done)),
];

const PAGE: usize = 4096;
const READ: libc::c_int = libc::PROT_READ;
const WRITE: libc::c_int = libc::PROT_WRITE;
const EXECUTE: libc::c_int = libc::PROT_EXEC;

/// The instruction that returns to the caller.
#[cfg(target_arch = "x86_64")]
const RETURN: &[u8] = &[0xc3];
#[cfg(target_arch = "aarch64")]
const RETURN: &[u8] = &[0xc0, 0x03, 0x5f, 0xd6];

fn page_of_code() -> Vec<u8> {
    let mut page = RETURN.to_vec();
    page.resize(PAGE, 0);
    page
}

fn map(file: i32, protection: libc::c_int, flags: libc::c_int) -> io::Result<*mut libc::c_void> {
    // SAFETY: the kernel chooses a place where nothing is.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, file, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(memory)
}

/// Makes a page writable in place of executable, and writes code to it.
fn write_code(memory: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: the page is this process's own and nothing refers to it.
    unsafe {
        checked(i64::from(libc::mprotect(memory, PAGE, READ | WRITE)))?;
        std::ptr::copy_nonoverlapping(RETURN.as_ptr(), memory.cast(), RETURN.len());
    }
    Ok(())
}

/// The same in a child, which has a mapping of its own.
fn write_in_child(memory: *mut libc::c_void) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: this process has one thread, so its child may do anything; the child is ours and not yet waited for.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(write_code(memory).map_or(1, |()| 0));
        }
        checked(i64::from(child))?;
        checked(i64::from(libc::waitpid(child, &raw mut status, 0)))?;
    }
    match status {
        0 => Ok(()),
        _ => Err(io::Error::other("the child could not write")),
    }
}

/// Calls what was written there: an instruction that returns.
fn run(memory: *mut libc::c_void) -> io::Result<Outcome> {
    // SAFETY: the page is mapped, executable, and begins with a return; the caller has shown all three.
    let code: extern "C" fn() = unsafe { std::mem::transmute(memory) };
    code();
    Ok(Outcome::Done)
}

fn map_written(path: &str) -> io::Result<Outcome> {
    fs::write(path, page_of_code())?;
    let file = fs::File::open(path)?;
    run(map(file.as_raw_fd(), READ | EXECUTE, libc::MAP_PRIVATE)?)
}
