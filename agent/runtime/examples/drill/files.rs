//! Attempts on files: the host's, the kernel's, the image's, and programs that were brought along.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chroot, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};

use crate::{Attempt, Outcome, checked, done, fact};

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("host-file", || read(&fact("HOST_FILE"))),
    ("host-file-symlink", || {
        let link = Path::new("/data/link");
        let _old = fs::remove_file(link);
        symlink(fact("HOST_FILE"), link)?;
        read("/data/link")
    }),
    ("host-file-dotdot", || {
        read(&format!("{}{}", "../".repeat(40), fact("HOST_FILE")))
    }),
    ("host-file-proc-root", || {
        read(&format!("/proc/self/root/../../../..{}", fact("HOST_FILE")))
    }),
    ("host-file-chroot", chroot_twice),
    ("proc-core-pattern", || {
        write_to("/proc/sys/kernel/core_pattern", "|/tmp/x")
    }),
    ("proc-modprobe", || open_to_write("/proc/sys/kernel/modprobe")),
    ("proc-sysrq", || open_to_write("/proc/sysrq-trigger")),
    ("proc-kcore", || read("/proc/kcore")),
    ("proc-keys", || read("/proc/keys")),
    ("proc-timer-list", || read("/proc/timer_list")),
    ("proc-oom-score", || write_to("/proc/self/oom_score_adj", "-1000")),
    ("proc-uid-map", || write_to("/proc/self/uid_map", "0 0 1")),
    ("proc-host-setting", || write_to("/proc/sys/vm/drop_caches", "1")),
    ("sys-uevent-helper", || open_to_write("/sys/kernel/uevent_helper")),
    ("sys-firmware", || list("/sys/firmware")),
    ("sys-debug", || list("/sys/kernel/debug")),
    ("sys-notes", || read("/sys/kernel/notes")),
    ("cgroup-release-agent", || {
        first_of(
            &["", "/memory", "/cpu", "/pids", "/unified", "/rdma"]
                .map(|hierarchy| format!("/sys/fs/cgroup{hierarchy}/release_agent")),
        )
    }),
    ("cgroup-limits", || {
        first_of(&["memory/memory.limit_in_bytes", "memory.max"].map(|file| format!("/sys/fs/cgroup/{file}")))
    }),
    ("cgroup-move", || {
        first_of(
            &["memory/cgroup.procs", "cgroup.procs"].map(|file| format!("/sys/fs/cgroup/../cgroup/{file}")),
        )
    }),
    ("device-memory", || read("/dev/mem")),
    ("device-log", || read("/dev/kmsg")),
    ("device-kvm", || read("/dev/kvm")),
    ("device-fuse", || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map(done)
    }),
    ("device-node-disk", || make_node(FileType::BlockDevice, 8)),
    ("device-node-memory", || make_node(FileType::CharacterDevice, 1)),
    ("code-overwrite", || open_to_write("/bin/victim-overwrite")),
    ("code-truncate", || {
        nix::unistd::truncate("/bin/victim-truncate", 0)
            .map(done)
            .map_err(io::Error::from)
    }),
    ("code-remove", || fs::remove_file("/bin/victim-remove").map(done)),
    ("code-create", || fs::write("/bin/drill-new", "x").map(done)),
    ("code-smuggle", || {
        drop_program("/tmp/smuggled")?;
        fs::rename("/tmp/smuggled", "/bin/smuggled").map(done)
    }),
    ("library-overwrite", || open_to_write("/lib/victim.so")),
    ("top-create", || fs::create_dir("/drill-new").map(done)),
    ("self-exe-overwrite", self_exe),
    ("volume-read-only", || fs::write("/config/new", "x").map(done)),
    ("exec-tmp", || run_dropped("/tmp/dropped")),
    ("exec-shm", || run_dropped("/dev/shm/dropped")),
    ("exec-volume", || run_dropped("/data/dropped")),
    ("exec-volume-linked", || run_dropped("/srv/linked/dropped")),
    ("exec-app", || run_dropped("/app/dropped")),
    ("exec-replaced", || {
        drop_program("/app/fresh")?;
        fs::rename("/app/fresh", "/app/tool")?;
        execute("/app/tool")
    }),
    ("exec-script", || {
        fs::write("/tmp/script", "#!/bin/sh\nexit 0\n")?;
        fs::set_permissions("/tmp/script", fs::Permissions::from_mode(0o755))?;
        execute("/tmp/script")
    }),
    ("exec-memfd-sealed", memfd),
    ("exec-unlinked", || {
        drop_program("/tmp/unlinked")?;
        let file = fs::File::open("/tmp/unlinked")?;
        fs::remove_file("/tmp/unlinked")?;
        execute_descriptor(file.as_raw_fd())
    }),
    ("setuid-program", || {
        // The image's own; run as an ordinary user of the pod it would make root of it.
        // SAFETY: numbers only.
        unsafe { checked(i64::from(libc::setresuid(1000, 1000, 1000)))? };
        let output = std::process::Command::new("/app/setuid").arg("whoami").output()?;
        Ok(match output.stdout.as_slice() {
            b"0\n" => Outcome::Done,
            _ => Outcome::Saw("no other user"),
        })
    }),
    ("chown-outside", || {
        fs::write("/tmp/owned", "x")?;
        std::os::unix::fs::chown("/tmp/owned", Some(70_000), None).map(done)
    }),
];

fn read(path: &str) -> io::Result<Outcome> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut bytes = [0; 16];
    Ok(match file.read(&mut bytes)? {
        0 => Outcome::Saw("nothing"),
        _ => Outcome::Done,
    })
}

fn list(path: &str) -> io::Result<Outcome> {
    Ok(match fs::read_dir(path)?.next() {
        Some(_) => Outcome::Done,
        None => Outcome::Saw("nothing"),
    })
}

/// Opens the first of these files that can be opened for writing.
fn first_of(paths: &[String]) -> io::Result<Outcome> {
    let mut outcome = Ok(Outcome::Saw("nothing"));
    for path in paths {
        outcome = open_to_write(path);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn open_to_write(path: &str) -> io::Result<Outcome> {
    OpenOptions::new().write(true).open(path).map(done)
}

fn write_to(path: &str, text: &str) -> io::Result<Outcome> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
        .map(done)
}

/// A second root below the first leaves the working directory outside of it, from where `..` leads up.
fn chroot_twice() -> io::Result<Outcome> {
    let outside = fs::File::open("/")?;
    fs::create_dir_all("/tmp/inner")?;
    chroot("/tmp/inner")?;
    // SAFETY: an open descriptor.
    unsafe { checked(i64::from(libc::fchdir(outside.as_raw_fd())))? };
    for _ in 0..40 {
        std::env::set_current_dir("..")?;
    }
    chroot(".")?;
    read(&fact("HOST_FILE"))
}

fn make_node(kind: FileType, major: u32) -> io::Result<Outcome> {
    let device = rustix::fs::makedev(major, 0);
    let made = rustix::fs::mknodat(CWD, "/tmp/node", kind, Mode::from_raw_mode(0o600), device);
    made.map(done).map_err(io::Error::from)
}

/// CVE-2019-5736: the program file of another process, kept through `/proc` until nothing runs from it, then
/// opened for writing.
fn self_exe() -> io::Result<Outcome> {
    let mut child = std::process::Command::new("/bin/victim-overwrite")
        .arg0("sleep")
        .arg("1000")
        .spawn()?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(format!("/proc/{}/exe", child.id()));
    child.kill()?;
    child.wait()?;
    let file = file?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // The kernel may take the dead process's memory apart, and the program with it, a moment after it is waited for.
    for _ in 0..500 {
        match open_to_write(&path) {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
                #[expect(clippy::disallowed_methods, reason = "nothing tells when it is done")]
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    open_to_write(&path)
}

fn drop_program(path: &str) -> io::Result<()> {
    fs::copy("/bin/busybox", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn run_dropped(path: &str) -> io::Result<Outcome> {
    drop_program(path)?;
    execute(path)
}

fn execute(path: &str) -> io::Result<Outcome> {
    std::process::Command::new(path).arg0("true").status().map(done)
}

/// An anonymous file of the only kind that can be had: sealed against execution.
fn memfd() -> io::Result<Outcome> {
    const MFD_NOEXEC_SEAL: libc::c_uint = 8;
    // SAFETY: a C string and a number; the new descriptor is nobody else's.
    let mut file = unsafe {
        let descriptor = checked(i64::from(libc::memfd_create(c"drill".as_ptr(), MFD_NOEXEC_SEAL)))?;
        fs::File::from_raw_fd(i32::try_from(descriptor).map_err(io::Error::other)?)
    };
    file.write_all(&fs::read("/bin/busybox")?)?;
    let _sealed = file.set_permissions(fs::Permissions::from_mode(0o755));
    execute_descriptor(file.as_raw_fd())
}

/// Becomes the program; returns only if that failed.
pub(crate) fn execute_descriptor(descriptor: i32) -> io::Result<Outcome> {
    let arguments = [c"busybox".as_ptr(), c"true".as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays are of C strings and end with null; on success nothing of this process remains.
    unsafe {
        let result = libc::syscall(
            libc::SYS_execveat,
            descriptor,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        checked(result).map(done)
    }
}
