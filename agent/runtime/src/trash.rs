//! Where what containers have written goes first when it is removed: a rename frees its path at once, and the files, of which
//! a pod may have made millions, go afterwards. So nobody waits for a removal who needs no more than the path.
//!
//! Not here: how a tree is removed ([`remove_tree`]).

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use crate::remove::remove_tree;

/// Removals at a time: a pod with millions of files keeps neither the disk nor the processors from the others.
const AT_A_TIME: usize = 2;

/// A directory whose contents are being removed, first come, first gone; cheap to clone. What is to go must be on its file
/// system, or is removed where it is.
///
/// The process may end at any time: what is in it then, whoever looks into it next removes ([`Trash::look`]).
#[derive(Debug, Clone)]
pub struct Trash {
    shared: Arc<Shared>,
}

/// For as long as it lives, nothing is removed.
#[derive(Debug)]
#[doc(hidden)]
pub struct Held(Trash);

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    state: Mutex<State>,
    /// Told when a thread has nothing more to remove.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers the places in the trash.
    next: u64,
    waiting: VecDeque<PathBuf>,
    /// What waits and what is being removed.
    known: BTreeSet<PathBuf>,
    failed: Vec<(PathBuf, io::Error)>,
    at_work: usize,
    held: bool,
}

impl Trash {
    /// Nothing is touched before the first call.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            shared: Arc::new(Shared {
                directory,
                state: Mutex::default(),
                done: Condvar::new(),
            }),
        }
    }

    /// Frees `path`, whatever is there; that nothing is there is not an error. Takes as long as a rename, except from another
    /// file system: then, until all is removed.
    ///
    /// # Errors
    ///
    /// When something is mounted at `path` or below: then nothing was touched. When the rename fails.
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        match path.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        demand_nothing_mounted(path)?;
        match self.take(path) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => remove_tree(path),
            taken => taken,
        }
    }

    /// Goes on with what an earlier process has left here, and tries again what could not be removed.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn look(&self) -> io::Result<()> {
        // Held, so that a place is never seen between its making and its filling.
        let mut state = self.lock();
        let entries = match fs::read_dir(&self.shared.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        state.failed.clear();
        for entry in entries {
            state.add(entry?.path());
        }
        self.start(&mut state);
        Ok(())
    }

    /// Waits until all that is here is gone, also what an earlier process has left.
    ///
    /// # Errors
    ///
    /// When something cannot be removed; it is tried again at the next call.
    pub async fn emptied(&self) -> io::Result<()> {
        let trash = self.clone();
        let waited = tokio::task::spawn_blocking(move || trash.wait()).await;
        waited.map_err(io::Error::other)?
    }

    /// For tests: as if the removals under way took for ever.
    #[doc(hidden)]
    #[must_use]
    pub fn hold(&self) -> Held {
        self.lock().held = true;
        Held(self.clone())
    }

    /// Moves `path` to a place of its own. There it keeps its name, which tells what it was.
    fn take(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let mut state = self.lock();
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(&self.shared.directory)?;
        private.recursive(false);
        let place = loop {
            let place = self.shared.directory.join(state.next.to_string());
            state.next += 1;
            match private.create(&place) {
                Ok(()) => break place,
                // An earlier process left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        if let Err(error) = fs::rename(path, place.join(name)) {
            let _looked_for_later = fs::remove_dir(&place);
            return match error.kind() {
                io::ErrorKind::NotFound if path.symlink_metadata().is_err() => Ok(()),
                _ => Err(error),
            };
        }
        state.add(place);
        // One more attempt, now that there is work anyway.
        for (place, _) in std::mem::take(&mut state.failed) {
            state.add(place);
        }
        self.start(&mut state);
        Ok(())
    }

    /// Has as many threads at work as there is work for. They end with it.
    fn start(&self, state: &mut State) {
        let room = AT_A_TIME.saturating_sub(state.at_work);
        let needed = if state.held { 0 } else { state.waiting.len() };
        for _ in 0..room.min(needed) {
            let trash = self.clone();
            let thread = std::thread::Builder::new().name("removal".into());
            match thread.spawn(move || trash.work()) {
                Ok(_) => state.at_work += 1,
                Err(error) => {
                    tracing::warn!(%error, "no thread to remove files of pods; they go with the next ones");
                    return;
                }
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let next = if state.held {
                None
            } else {
                state.waiting.pop_front()
            };
            let Some(place) = next else {
                state.at_work -= 1;
                self.shared.done.notify_all();
                return;
            };
            drop(state);
            let removed = remove_tree(&place);
            state = self.lock();
            state.known.remove(&place);
            if let Err(error) = removed {
                tracing::warn!(place = %place.display(), %error, "cannot remove what a pod has left");
                state.failed.push((place, error));
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        self.look()?;
        let mut state = self.lock();
        loop {
            let waits = !state.waiting.is_empty();
            if state.at_work == 0 && waits && !state.held {
                return Err(io::Error::other("no thread to remove it"));
            }
            if state.at_work == 0 && !waits {
                break;
            }
            let told = self.shared.done.wait(state);
            state = told.unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((place, error)) = state.failed.first() {
            let said = format!("{}: {error}", place.display());
            return Err(io::Error::new(error.kind(), said));
        }
        // The directory goes too, so that nothing tells of what was. Whatever else it holds came from another process.
        match fs::remove_dir(&self.shared.directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, place: PathBuf) {
        if self.known.insert(place.clone()) {
            self.waiting.push_back(place);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held = false;
        self.0.start(&mut state);
    }
}

/// What is mounted may be anybody's, and once it is in the trash nobody would unmount it.
fn demand_nothing_mounted(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let path = parent.canonicalize()?.join(name);
    let mounts = fs::read("/proc/self/mountinfo")?;
    match mount_points(&mounts).find(|point| point.starts_with(&path)) {
        Some(point) => {
            let said = format!("something is mounted at {}", point.display());
            Err(io::Error::new(io::ErrorKind::ResourceBusy, said))
        }
        None => Ok(()),
    }
}

/// The fifth field of each line, see proc_pid_mountinfo(5).
fn mount_points(mounts: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mounts.split(|byte| *byte == b'\n');
    lines.filter_map(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescaped(point))))
    })
}

/// Blanks, line ends and backslashes are written as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut found = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\');
        let byte = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        found.push(byte.unwrap_or(*first));
        rest = match byte {
            Some(_) => behind.get(3..).unwrap_or_default(),
            None => behind,
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use rustix::mount::UnmountFlags;

    use super::*;

    fn trash(base: &Path) -> Trash {
        Trash::new(base.join("state/.trash"))
    }

    fn tree(path: &Path) {
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/file"), "").unwrap();
    }

    #[tokio::test]
    async fn a_path_is_free_at_once_however_long_its_files_take() {
        let base = tempfile::tempdir().unwrap();
        let trash = trash(base.path());
        let held = trash.hold();
        let path = base.path().join("same");
        for _ in 0..5 {
            tree(&path);
            trash.discard(&path).unwrap();
            assert!(!path.exists());
        }
        trash.discard(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        trash.discard(&path).unwrap();
        let places = || fs::read_dir(base.path().join("state/.trash")).unwrap().count();
        assert_eq!(places(), 6, "what is not there takes no place");
        let mut all = Box::pin(trash.emptied());
        let waits =
            std::future::poll_fn(|context| std::task::Poll::Ready(all.as_mut().poll(context).is_pending()));
        assert!(waits.await);
        assert_eq!(places(), 6);
        drop(held);
        all.await.unwrap();
        assert!(!base.path().join("state/.trash").exists());
        trash.emptied().await.unwrap();
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_goes_and_its_places_are_not_taken_again() {
        let base = tempfile::tempdir().unwrap();
        let earlier = trash(base.path());
        let held = earlier.hold();
        for name in ["one", "two"] {
            tree(&base.path().join(name));
            earlier.discard(&base.path().join(name)).unwrap();
        }
        let trash = trash(base.path());
        tree(&base.path().join("three"));
        let own = trash.hold();
        trash.discard(&base.path().join("three")).unwrap();
        drop(own);
        trash.emptied().await.unwrap();
        assert!(!base.path().join("state/.trash").exists());
        drop(held);
        earlier.emptied().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_touched_while_something_is_mounted() {
        let base = tempfile::tempdir().unwrap();
        let trash = trash(base.path());
        let path = base.path().join("a name");
        tree(&path);
        let point = path.join("a/b");
        crate::tmpfs::mount(&point, 1 << 20, 0o755).unwrap();
        fs::write(point.join("theirs"), "").unwrap();
        for busy in [&path, &point] {
            let error = trash.discard(busy).expect_err("mounted");
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
        }
        assert!(path.join("a/file").exists() && point.join("theirs").exists());
        rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
        trash.discard(&path).unwrap();
        assert!(!path.exists());
        trash.emptied().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_on_another_file_system_goes_all_the_same() {
        let base = tempfile::tempdir().unwrap();
        let other = base.path().join("other");
        fs::create_dir(&other).unwrap();
        crate::tmpfs::mount(&other, 1 << 20, 0o755).unwrap();
        let path = other.join("pod");
        tree(&path);
        let discarded = trash(base.path()).discard(&path);
        let gone = !path.exists();
        rustix::mount::unmount(&other, UnmountFlags::DETACH).unwrap();
        discarded.unwrap();
        assert!(gone);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_told_and_tried_again() {
        let base = tempfile::tempdir().unwrap();
        let trash = trash(base.path());
        let held = trash.hold();
        for name in ["one", "two"] {
            tree(&base.path().join(name));
            trash.discard(&base.path().join(name)).unwrap();
        }
        // Somebody has mounted something in the trash.
        let point = base.path().join("state/.trash/0/one/a");
        crate::tmpfs::mount(&point, 1 << 20, 0o755).unwrap();
        drop(held);
        let told = trash.emptied().await;
        let left = [point.exists(), base.path().join("state/.trash/1").exists()];
        rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
        assert!(told.is_err());
        assert_eq!(left, [true, false], "the others go");
        trash.emptied().await.unwrap();
        assert!(!base.path().join("state/.trash").exists());
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let mounts = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:26 / /a\\040b\\134c/d rw - tmpfs none rw\nshort\n";
        let found: Vec<_> = mount_points(mounts).collect();
        assert_eq!(found, [Path::new("/"), Path::new("/a b\\c/d")]);
    }
}
