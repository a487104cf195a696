//! The program that a process becomes, made ready before its system calls are filtered. Then nothing is left but the calls that
//! execute it, which a filter need not leave more than.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError, c_char};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal};

/// Where programs are looked for without `PATH`, as the C library has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What a file is executed by that is executable and says nothing else, as the C library has it.
const SHELL: &str = "/bin/sh";

/// A program with its arguments and environment.
#[derive(Debug)]
pub(crate) struct Program {
    /// Where it may lie; the first that can be executed is.
    places: Vec<CString>,
    arguments: Strings,
    environment: Strings,
    /// The shell's arguments, with a place for the program's name.
    shell: Strings,
}

impl Program {
    /// Of variables that are named twice the last counts. `argv` begins with the program's name.
    pub(crate) fn new<'a>(
        argv: &[String],
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, NulError> {
        let environment: BTreeMap<&str, &str> = environment.into_iter().collect();
        let places = match argv.first() {
            Some(program) => places(program, environment.get("PATH").copied()),
            None => Vec::new(),
        };
        let shell = [SHELL, ""]
            .into_iter()
            .chain(argv.iter().skip(1).map(String::as_str));
        Ok(Self {
            places: places.into_iter().map(CString::new).collect::<Result<_, _>>()?,
            arguments: Strings::new(argv.iter().map(String::as_str))?,
            environment: Strings::new(environment.iter().map(|(name, value)| format!("{name}={value}")))?,
            shell: Strings::new(shell)?,
        })
    }

    /// Becomes the program, by `execve` alone. Returns only why it could not.
    pub(crate) fn execute(mut self) -> Errno {
        let (mut last, mut is_denied) = (Errno::ENOENT, false);
        let places = std::mem::take(&mut self.places);
        for place in &places {
            last = execute(place, &self.arguments, &self.environment);
            if last == Errno::ENOEXEC {
                if let Some(name) = self.shell.pointers.get_mut(1) {
                    *name = place.as_ptr();
                }
                last = match self.shell.strings.first() {
                    Some(shell) => execute(shell, &self.shell, &self.environment),
                    None => last,
                };
            }
            match last {
                Errno::EACCES => is_denied = true,
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::ENAMETOOLONG
                | Errno::ESTALE
                | Errno::ENODEV
                | Errno::ETIMEDOUT => {}
                other => return other,
            }
        }
        if is_denied { Errno::EACCES } else { last }
    }
}

/// Gives up what a Rust program changes of signals for itself and a program would inherit: the mask, and SIGPIPE, which the
/// standard library ignores.
pub(crate) fn restore_signals() -> Result<(), Errno> {
    SigSet::empty().thread_set_mask()?;
    // SAFETY: sets no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// Where a program may lie by its name and `PATH`, in order; relative ones start at the working directory.
pub(crate) fn places(program: &str, path: Option<&str>) -> Vec<String> {
    if program.is_empty() || program.contains('/') {
        return vec![program.to_owned()];
    }
    let directories = path.unwrap_or(DEFAULT_PATH).split(':');
    let place = |directory: &str| match directory {
        "" => program.to_owned(),
        directory => format!("{directory}/{program}"),
    };
    directories.map(place).collect()
}

fn execute(place: &CString, arguments: &Strings, environment: &Strings) -> Errno {
    // SAFETY: a string, and two lists of strings that end with a null pointer; all of them outlive the call.
    unsafe {
        libc::execve(
            place.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        );
    }
    Errno::last()
}

/// Strings as the kernel takes them.
#[derive(Debug)]
struct Strings {
    /// What the pointers point to.
    strings: Vec<CString>,
    /// One for each string, and a null pointer.
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new<S: Into<Vec<u8>>>(strings: impl IntoIterator<Item = S>) -> Result<Self, NulError> {
        let strings: Vec<CString> = strings.into_iter().map(CString::new).collect::<Result<_, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr());
        Ok(Self {
            pointers: pointers.chain([std::ptr::null()]).collect(),
            strings,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_program_is_where_the_c_library_would_look_for_it() {
        assert_eq!(places("/bin/sh", Some("/x")), ["/bin/sh"]);
        assert_eq!(places("./run", None), ["./run"]);
        assert_eq!(places("run", Some("/a:/b")), ["/a/run", "/b/run"]);
        assert_eq!(places("run", Some(":/b:")), ["run", "/b/run", "run"]);
        assert_eq!(places("run", Some("")), ["run"]);
        assert_eq!(places("run", None), ["/bin/run", "/usr/bin/run"]);
        assert_eq!(places("", Some("/a")), [""]);
        assert!(Program::new(&["a\0b".to_owned()], []).is_err());
        assert!(Program::new(&["a".to_owned()], [("B", "c\0d")]).is_err());
    }

    /// What a child says that becomes the program, or the number of its error.
    fn said(argv: &[&str], environment: &[(&str, &str)]) -> Result<String, Errno> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let program = Program::new(&argv, environment.iter().copied()).expect("no NUL");
        let (mut from_child, to_parent) = std::io::pipe().expect("a pipe");
        // SAFETY: the child makes system calls only; what it needs was allocated before.
        match unsafe { nix::unistd::fork() }.expect("a child") {
            nix::unistd::ForkResult::Child => {
                let connected = nix::unistd::dup2(to_parent.as_raw_fd(), 1);
                let errno = connected.map_or_else(|errno| errno, |_stdout| program.execute());
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(errno as i32) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop(to_parent);
                let mut output = String::new();
                from_child.read_to_string(&mut output).expect("text");
                match nix::sys::wait::waitpid(child, None).expect("it ends") {
                    nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(output),
                    nix::sys::wait::WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_program_is_found_and_executed_as_the_c_library_does_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |path: &str, mode, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
            std::fs::write(&path, text).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        };
        write("a/locked", 0o644, "");
        write("b/locked", 0o755, "#!/bin/sh\necho b $1\n");
        write("a/plain", 0o755, "echo \"plain $0 $1 $COLOUR\"\n");
        write("a/only", 0o644, "");
        let root = directory.path().display().to_string();
        let path = format!("{root}/none:{root}/a:{root}/b");
        let environment = [("PATH", path.as_str()), ("COLOUR", "red"), ("COLOUR", "blue")];
        assert_eq!(said(&["locked", "x"], &environment).as_deref(), Ok("b x\n"));
        let plain = Path::new(&root).join("a/plain");
        let expected = format!("plain {} y blue\n", plain.display());
        assert_eq!(said(&["plain", "y"], &environment), Ok(expected));
        assert_eq!(said(&["only"], &environment), Err(Errno::EACCES));
        assert_eq!(said(&["absent"], &environment), Err(Errno::ENOENT));
        assert_eq!(said(&["/dev/null/x"], &environment), Err(Errno::ENOTDIR));
        assert_eq!(
            said(&["sh", "-c", "echo $COLOUR"], &[("COLOUR", "red")]).as_deref(),
            Ok("red\n")
        );
    }
}
