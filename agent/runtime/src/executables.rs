//! Which files of an image a container may execute outside of the code directories: those of its layers together, as many as a
//! ruleset takes and the request to the shim has room for.

use std::path::{Component, Path, PathBuf};

use agent_sandbox::{ExecutableIndex, MAX_EXECUTABLES};

use crate::{config::ContainerConfig, protocol::MAX_FRAME, shim::program::places};

/// Of the request, what is neither the configuration nor paths, and some.
const FRAME_SPARE_BYTES: usize = 256;

/// Directories of `PATH` that count.
const MAX_PLACES: usize = 64;

/// The executables of an image, relative to its root, each once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executables {
    /// Sorted, but for where the container's own program may be, which comes first if not all are here.
    pub(crate) paths: Vec<PathBuf>,
    /// Whether some were left out. Stricter than promised, never weaker; but whoever wonders why a program is refused must
    /// find it.
    pub(crate) truncated: bool,
}

/// How many bytes of paths a request has room for beside a configuration of so many.
pub(crate) fn room_beside(config_bytes: usize) -> usize {
    MAX_FRAME.saturating_sub(config_bytes.saturating_add(FRAME_SPARE_BYTES))
}

/// Puts those of the layers together, up to `room` bytes as they are written in a request. The program of `config` comes before
/// all others.
pub(crate) fn of_image<'a>(
    layers: impl IntoIterator<Item = &'a ExecutableIndex>,
    config: &ContainerConfig,
    room: usize,
) -> Executables {
    let mut truncated = false;
    let mut all = Vec::new();
    for layer in layers {
        truncated |= layer.truncated;
        all.extend(layer.paths.iter());
    }
    all.sort();
    all.dedup();
    let fits = all.len() <= MAX_EXECUTABLES
        && (all.iter().map(|path| written_bytes(path)))
            .try_fold(0, add_up)
            .is_some_and(|all| all <= room);
    if fits && !truncated {
        let paths = all.into_iter().cloned().collect();
        return Executables { paths, truncated };
    }
    // Those that a layer's bound cut off are not known. Whether there is an executable file is looked at in the container's root.
    let own = programs(config);
    let others = all.into_iter().filter(|path| !own.contains(path));
    let mut left = room;
    let paths = own.iter().chain(others).filter(|path| {
        let rest = written_bytes(path).and_then(|bytes| left.checked_sub(bytes));
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    Executables {
        paths: paths.take(MAX_EXECUTABLES).cloned().collect(),
        truncated: true,
    }
}

fn add_up(sum: usize, bytes: Option<usize>) -> Option<usize> {
    sum.checked_add(bytes?)
}

/// What a path takes in JSON with the comma behind it; nothing for one that JSON cannot say.
fn written_bytes(path: &Path) -> Option<usize> {
    let of_char = |char: char| match char {
        '"' | '\\' | '\n' | '\r' | '\t' | '\x08' | '\x0c' => 2,
        '\0'..='\x1f' => 6,
        other => other.len_utf8(),
    };
    let text = path.to_str()?;
    Some(text.chars().map(of_char).sum::<usize>() + 3)
}

/// Where the program of a container may lie, relative to the root, as far as its links are what their names say, each once.
fn programs(config: &ContainerConfig) -> Vec<PathBuf> {
    let Some(program) = config.argv.first() else {
        return Vec::new();
    };
    let path = config.env.iter().rfind(|(name, _)| name == "PATH");
    let places = places(program, path.map(|(_, path)| path.as_str()));
    let places = places.into_iter().map(|place| config.cwd.join(place));
    let mut own: Vec<PathBuf> = Vec::new();
    for place in places.map(|place| relative_to_root(&place)) {
        if !own.contains(&place) && own.len() < MAX_PLACES {
            own.push(place);
        }
    }
    own
}

fn relative_to_root(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => found.push(name),
            Component::ParentDir => drop(found.pop()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::protocol::{Request, encode};

    fn layer(paths: impl IntoIterator<Item = String>) -> ExecutableIndex {
        let mut paths: Vec<_> = paths.into_iter().map(PathBuf::from).collect();
        paths.sort();
        ExecutableIndex {
            paths,
            truncated: false,
        }
    }

    fn config(argv: &str) -> ContainerConfig {
        ContainerConfig {
            argv: vec![argv.into()],
            env: vec![("PATH".into(), "/bin:/zz/bin".into())],
            cwd: "/zz".into(),
            ..crate::config::tests::container(agent_sandbox::Profile::baseline())
        }
    }

    #[test]
    fn what_fits_is_all_there_each_once() {
        let layers = [
            layer(["b".into(), "app/a".into()]),
            layer(["app/a".into(), "c".into()]),
        ];
        let found = of_image(&layers, &config("/c"), MAX_FRAME);
        assert_eq!(found.paths, ["app/a", "b", "c"].map(PathBuf::from));
        assert!(!found.truncated);
        let cut = ExecutableIndex {
            truncated: true,
            ..layers[0].clone()
        };
        assert!(of_image([&cut], &config("/c"), MAX_FRAME).truncated);
    }

    #[test]
    fn of_too_many_the_containers_own_program_stays_and_it_is_said() {
        let half =
            |name: &str| layer((0..MAX_EXECUTABLES / 2 + 1).map(|number| format!("{name}/{number:05}")));
        let layers = [half("a"), half("b"), layer(["zz/bin/run".into()])];
        for (argv, stays) in [
            ("/zz/bin/run", true),
            ("bin/run", true),
            ("/zz/./other/../bin/run", true),
            ("run", true),
            ("/zz/bin/other", false),
            ("other", false),
        ] {
            let found = of_image(&layers, &config(argv), MAX_FRAME);
            assert!(found.truncated);
            assert_eq!(found.paths.len(), MAX_EXECUTABLES);
            let has = found.paths.contains(&PathBuf::from("zz/bin/run"));
            assert_eq!(has, stays, "{argv}");
        }
    }

    /// A layer that has too many itself does not tell of all.
    #[test]
    fn the_containers_own_program_comes_first_whether_its_layer_told_of_it_or_not() {
        let cut = ExecutableIndex {
            truncated: true,
            ..layer(["a".into(), "b".into()])
        };
        for (argv, expected) in [
            ("/zz/bin/run", vec!["zz/bin/run", "a", "b"]),
            ("run", vec!["bin/run", "zz/bin/run", "a", "b"]),
            ("/b", vec!["b", "a"]),
        ] {
            let found = of_image([&cut], &config(argv), MAX_FRAME);
            assert!(found.truncated);
            let expected: Vec<PathBuf> = expected.into_iter().map(PathBuf::from).collect();
            assert_eq!(found.paths, expected, "{argv}");
        }
    }

    #[test]
    fn long_and_odd_paths_fit_the_request() {
        let odd = "\u{1}\"\\ä\u{7f}\n".repeat(40);
        let layer = layer((0..4000).map(|number| format!("{odd}/{odd}/{odd}/{odd}/{number:05}")));
        let mut config = config("/zz/bin/run");
        config.env.push(("LARGE".into(), "\n".repeat(1 << 20)));
        let config_bytes = serde_json::to_vec(&config).expect("text").len();
        let found = of_image([&layer], &config, room_beside(config_bytes));
        assert!(
            found.truncated && found.paths.len() > 100,
            "{}",
            found.paths.len()
        );
        let request = Request::Start {
            config: Box::new(config),
            executables: found.paths,
        };
        let frame = encode(&request).expect("fits");
        assert!(frame.len() > MAX_FRAME / 10 * 9, "{} of {MAX_FRAME}", frame.len());
    }

    /// JSON has no words for it, and the container must start all the same.
    #[test]
    fn a_name_that_is_no_text_is_left_out_and_it_is_said() {
        let mut layer = layer(["run".into()]);
        layer.paths.push(OsString::from_vec(vec![b'x', 0xff]).into());
        let found = of_image([&layer], &config("/run"), MAX_FRAME);
        assert_eq!(found.paths, [PathBuf::from("run")]);
        assert!(found.truncated);
    }
}
