//! `cargo xtask lab`: tests in a virtual machine, for what the kernel of this machine may not show: Debian's 6.12, the
//! oldest that Palisade supports, with control groups of version 2 only, and swap. `cargo xtask lab cluster` runs a whole
//! cluster there: `policyctl up`, the demonstration, `policyctl down`, and a look at what is left.
//!
//! The machine is emulated, so it needs no `/dev/kvm` and no root; it has no network and no disk. All it has is an
//! initial RAM file system with busybox, a few kernel modules, the test programs and their libraries. Nothing is
//! installed but the packages in `setup.rs`: the kernel is unpacked below `target/lab`. What the tests print appears on
//! the machine's first serial line; how they ended goes to the second one alone, where no kernel message can mix in.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    process::{self, cargo, command, output, root},
    setup, up,
};

/// Packages that depend on the kernel wanted: in Debian 12 (its security archive), and in Debian 13.
const KERNELS: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// How the name of the kernel's own package begins. Debian 12 has an older one too.
const KERNEL: &str = "linux-image-6.12";

/// What Debian builds as modules, with parameters, each after those that it depends on.
const MODULES: [(&str, &str); 20] = [
    ("overlay", ""),
    ("veth", ""),
    ("brd", "rd_nr=1 rd_size=524288"),
    ("sch_ingress", ""),
    ("cls_bpf", ""),
    ("libcrc32c", ""),
    ("nfnetlink", ""),
    ("nf_defrag_ipv4", ""),
    ("nf_defrag_ipv6", ""),
    ("nf_conntrack", ""),
    ("nf_nat", ""),
    ("nf_tables", ""),
    ("nft_chain_nat", ""),
    ("nft_nat", ""),
    ("nft_masq", ""),
    ("nft_ct", ""),
    ("nft_fib", ""),
    ("nft_fib_ipv4", ""),
    ("nft_fib_ipv6", ""),
    ("nft_fib_inet", ""),
];

/// Programs that tests call; busybox has an `ip` and an `unshare` of its own that know less, and neither `nft` nor `tc`.
const TOOLS: [&str; 4] = ["ip", "nft", "tc", "unshare"];

/// What a cluster and its demonstration need beside them, with the place where they look for it.
const CLUSTER_TOOLS: [(&str, &str); 5] = [
    // For `ldd`, which is a script.
    ("bash", "bin/bash"),
    ("bpftool", "tools/bpftool"),
    ("docker-registry", "tools/docker-registry"),
    ("ldd", "usr/bin/ldd"),
    ("perl", "usr/bin/perl"),
];

/// Programs that a machine may lack: what takes them is then left out, visibly.
const OPTIONAL_TOOLS: [(&str, &str); 1] = [("kubectl", "tools/kubectl")];

/// The cluster's own programs.
const CLUSTER_PROGRAMS: [&str; 5] = [
    "palisade-control",
    "palisade-agent",
    "palisade-shim",
    "policyctl",
    "demo",
];

/// Authorities of the web. Clients refuse to start without any.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The end-to-end tests that are run when none is chosen: what limits, counts, evicts and takes down.
const END_TO_END: [&str; 8] = [
    "pod_stays_within_its_limits",
    "storage_a_pod_over_its_limit_is_evicted",
    "an_agent_may_die_at_any_step",
    "a_host_that_went_down_comes_back",
    "top_shows_what_is_used",
    "drain_honours_budgets",
    "a_node_under_pressure_lets_pods_go",
    "a_node_that_shuts_down_ends_its_pods",
];

/// How much longer than elsewhere tests wait for what should happen. Measured: four times as slow as the machine itself;
/// the rest is for slower and busier ones.
const PATIENCE: u32 = 15;

/// How often two large policies take turns in the test of that, where time is four times as dear.
const FLIPS: u32 = 400;

/// Where the test programs are in the virtual machine, laid out as in cargo's target directory.
const PROGRAMS: &str = "lab";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Crates whose tests to run
    #[arg(value_enum, default_values_t = [Suite::AgentRuntime, Suite::AgentSandbox, Suite::EbpfLoader])]
    suites: Vec<Suite>,
    /// Stop the virtual machine and fail after this time
    #[arg(long, default_value_t = 2400)]
    deadline_secs: u32,
    /// Arguments for the test programs, such as the name of a test
    #[arg(last = true)]
    test: Vec<String>,
}

/// A crate whose integration tests need nothing but a kernel, or a whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    AgentRuntime,
    AgentSandbox,
    EbpfLoader,
    /// A cluster is started, shown and stopped
    Cluster,
    /// End-to-end tests of a cluster; without names those that have to do with control groups
    #[value(name = "e2e")]
    EndToEnd,
}

impl Suite {
    fn has_cluster(self) -> bool {
        matches!(self, Self::Cluster | Self::EndToEnd)
    }
}

/// Builds the tests and the virtual machine, runs them in it, and fails if any failed or was not run.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the lab's virtual machine is x86-64 and runs programs of this machine: use an x86-64 machine"
    );
    setup::packages(setup::For::Lab)?;
    if args.suites.iter().any(|suite| suite.has_cluster()) {
        setup::packages(setup::For::Development)?;
    }
    let directory = root().join("target/lab");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let kernel = Kernel::provide(&directory)?;
    let content = build(args)?;
    let image = directory.join("initramfs.cpio");
    make_image(&directory.join("root"), &image, &kernel, &content)?;
    let results = directory.join("results");
    boot(&kernel.image, &image, &results, args.deadline_secs)?;
    judge(&results, &content.steps)
}

/// An unpacked kernel package.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Downloads (the package manager checks the signature) and unpacks the kernel, unless that is done already.
    fn provide(directory: &Path) -> Result<Self> {
        let package = kernel_package()?;
        let unpacked = directory.join(&package);
        if !unpacked.is_dir() {
            println!("kernel: downloading {package}");
            let scratch = tempfile::tempdir_in(directory).context("cannot make a temporary directory")?;
            process::run(
                command("apt-get")
                    .args(["-qq", "-o", "APT::Sandbox::User=root", "download", &package])
                    .current_dir(scratch.path()),
            )
            .context("check the network and the sources in /etc/apt, then run this again")?;
            let archive = only_entry(scratch.path(), ".deb")?;
            let partial = scratch.path().join("unpacked");
            process::run(command("dpkg-deb").arg("-x").arg(archive).arg(&partial))?;
            fs::rename(&partial, &unpacked)
                .with_context(|| format!("cannot create {}", unpacked.display()))?;
        }
        println!("kernel: {package}");
        // Debian 12 and 13 differ in where modules are.
        let modules = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path));
        let modules = modules.into_iter().find(|path| path.is_dir());
        Ok(Self {
            image: only_entry(&unpacked.join("boot"), "vmlinuz-")?,
            modules: modules.with_context(|| format!("{package} holds no kernel modules"))?,
        })
    }
}

/// The package that holds the kernel, by the dependency of the package that follows it.
fn kernel_package() -> Result<String> {
    for name in KERNELS {
        let Ok(shown) = output(command("apt-cache").args(["show", "--no-all-versions", name])) else {
            continue;
        };
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let found = depends.and_then(|depends| {
            let mut names = depends
                .split(',')
                .filter_map(|dependency| dependency.split_whitespace().next());
            names.find(|name| name.starts_with(KERNEL)).map(str::to_owned)
        });
        if let Some(found) = found {
            return Ok(found);
        }
    }
    bail!(
        "the package manager knows no Linux 6.12 ({}): run apt-get update on Debian 12, with its security archive, or \
         on Debian 13",
        KERNELS.join(", ")
    )
}

/// The one entry of a directory whose name contains `part`.
fn only_entry(directory: &Path, part: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains(part));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("{} should hold one file named *{part}*", directory.display()),
    }
}

/// What is put into the virtual machine, and what is done there.
#[derive(Default)]
struct Content {
    files: Vec<Placed>,
    steps: Vec<Step>,
}

impl Content {
    fn add_step(&mut self, label: &str, command: &str) {
        self.steps.push(Step {
            label: label.to_owned(),
            command: command.to_owned(),
        });
    }
}

/// A file of this machine.
struct Placed {
    from: PathBuf,
    inside: PathBuf,
}

/// A command that must succeed.
struct Step {
    /// What its result is called.
    label: String,
    command: String,
}

/// One line of `cargo test --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

/// Builds what the suites need, and says what they do.
fn build(args: &Args) -> Result<Content> {
    let mut content = Content::default();
    if args.suites.iter().any(|suite| suite.has_cluster()) {
        add_programs(&mut content)?;
        content.add_step("cluster:address", ADDRESS);
    }
    for suite in &args.suites {
        match suite {
            Suite::AgentRuntime => add_tests("agent-runtime", args, &mut content)?,
            Suite::AgentSandbox => add_tests("agent-sandbox", args, &mut content)?,
            Suite::EbpfLoader => add_tests("ebpf-loader", args, &mut content)?,
            Suite::Cluster => add_cluster(args, &mut content)?,
            Suite::EndToEnd => add_end_to_end(args, &mut content)?,
        }
    }
    Ok(content)
}

/// The integration tests of a crate and their helpers.
fn add_tests(package: &str, args: &Args, content: &mut Content) -> Result<()> {
    let profile = up::binary_dir("dev");
    let built = output(cargo().args([
        "test",
        "--locked",
        "--no-run",
        "--message-format=json",
        "-p",
        package,
    ]))?;
    let arguments: String = args
        .test
        .iter()
        .map(|argument| format!(" {}", quoted(argument)))
        .collect();
    let steps = content.steps.len();
    for line in built.lines() {
        let message: Message = serde_json::from_str(line).context("cannot parse the output of cargo test")?;
        let (Some(path), Some(target)) = (message.executable, message.target) else {
            continue;
        };
        let kind = |wanted: &str| target.kind.iter().any(|kind| kind == wanted);
        if !kind("test") && !kind("example") {
            continue;
        }
        let relative = path.strip_prefix(&profile).with_context(|| {
            format!(
                "cargo built {}, which is not below {}",
                path.display(),
                profile.display()
            )
        })?;
        // As in cargo's directory, where the tests look for their helpers.
        let inside = Path::new(PROGRAMS).join(relative);
        if kind("test") {
            let program = Path::new("/").join(&inside);
            content.steps.push(Step {
                label: format!("{package}:{}", relative.display()),
                command: format!("{}{arguments}", quoted(&program.to_string_lossy())),
            });
        }
        content.files.push(Placed { from: path, inside });
    }
    ensure!(
        content.steps.len() > steps,
        "cargo built no integration test of {package}"
    );
    Ok(())
}

/// A cluster as users start it, the demonstration on it, and its end, after which the machine must be as it was.
fn add_cluster(args: &Args, content: &mut Content) -> Result<()> {
    ensure!(
        args.test.is_empty(),
        "the suite `cluster` has no tests to choose from; leave out what follows `--`"
    );
    for (label, command) in CLUSTER_STEPS {
        content.add_step(&format!("cluster:{label}"), command);
    }
    Ok(())
}

/// The end-to-end tests, in the same process on a cluster of their own.
fn add_end_to_end(args: &Args, content: &mut Content) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--locked", "--no-run", "--message-format=json"]);
    // With those beside it the libraries have the features that they have for the workspace: none is built anew.
    cargo.args([
        "-p",
        "palisade-agent",
        "-p",
        "policyctl",
        "-p",
        "e2e",
        "--test",
        "it",
    ]);
    let built = output(&mut cargo)?;
    let mut messages = built.lines().map(serde_json::from_str::<Message>);
    let tests = messages.find_map(|message| {
        let message = message.ok()?;
        let source = message.target?.src_path;
        source
            .ends_with("tests/e2e/tests/it/main.rs")
            .then_some(message.executable?)
    });
    let chosen = match args.test.is_empty() {
        true => END_TO_END.join(","),
        false => args.test.join(","),
    };
    content.add_step(
        "e2e",
        &format!("PALISADE_TEST_ONLY={} /lab/cluster/deps/e2e", quoted(&chosen)),
    );
    content.files.push(Placed {
        from: tests.context("cargo built no end-to-end tests")?,
        inside: Path::new(PROGRAMS).join("cluster/deps/e2e"),
    });
    Ok(())
}

/// The programs of a cluster, and what they need.
fn add_programs(content: &mut Content) -> Result<()> {
    let trivy = setup::trivy()?;
    let mut cargo = cargo();
    // Others are too slow here: the agent's connections take longer than it waits for them.
    cargo.args(["build", "--locked", "--release", "-p", "palisade-control"]);
    cargo.args(["-p", "palisade-agent", "-p", "palisade-shim", "-p", "policyctl"]);
    cargo.args(["-p", "e2e", "--bins"]);
    process::run(&mut cargo)?;
    for name in CLUSTER_PROGRAMS {
        content.files.push(Placed {
            from: up::binary_dir("release").join(name),
            inside: Path::new(PROGRAMS).join("cluster").join(name),
        });
    }
    for (name, inside) in CLUSTER_TOOLS {
        content.files.push(Placed {
            from: process::on_path(name).with_context(|| format!("{name} is not on the PATH"))?,
            inside: inside.into(),
        });
    }
    for (name, inside) in OPTIONAL_TOOLS {
        match process::on_path(name) {
            Some(from) => content.files.push(Placed {
                from,
                inside: inside.into(),
            }),
            None => println!("SKIPPED: what takes {name}, which is not on the PATH"),
        }
    }
    content.files.push(Placed {
        from: trivy,
        inside: "tools/trivy".into(),
    });
    content.files.push(Placed {
        from: AUTHORITIES.into(),
        inside: AUTHORITIES.trim_start_matches('/').into(),
    });
    Ok(())
}

/// Puts the initial RAM file system together.
fn make_image(tree: &Path, image: &Path, kernel: &Kernel, content: &Content) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove the old {}", tree.display()))?;
    }
    for directory in ["bin", "dev", "etc", "new", "proc", "run", "sys", "tmp", "modules"] {
        let path = tree.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let busybox = process::on_path("busybox").context("busybox is not on the PATH")?;
    place(&busybox, tree, Path::new("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh")).context("cannot link the shell")?;
    for (name, _) in MODULES {
        let packed = find_file(&kernel.modules, &format!("{name}.ko.xz"))?
            .with_context(|| format!("the kernel package holds no module {name}"))?;
        let path = tree.join("modules").join(format!("{name}.ko"));
        let module = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        process::run(
            command("xz")
                .args(["--decompress", "--stdout"])
                .arg(packed)
                .stdout(module),
        )?;
    }
    let mut libraries = BTreeSet::new();
    for name in TOOLS {
        let path = process::on_path(name).with_context(|| format!("{name} is not on the PATH"))?;
        place(&path, tree, &Path::new("tools").join(name))?;
        libraries.extend(libraries_of(&path)?);
    }
    for file in &content.files {
        place(&file.from, tree, &file.inside)?;
        libraries.extend(libraries_of(&file.from)?);
    }
    for library in libraries {
        let inside = library.strip_prefix("/").unwrap_or(&library).to_owned();
        place(&library, tree, &inside)?;
    }
    for (name, text) in [
        ("init", FIRST_STAGE.to_owned()),
        ("main", second_stage(&content.steps)),
    ] {
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    pack(tree, image)
}

/// libcontainer's `pivot_root` is refused on the kernel's own root file system, so all moves to another one first.
const FIRST_STAGE: &str = "#!/bin/sh
/bin/busybox mount -t tmpfs -o mode=755 root /new
for entry in /*; do
    [ $entry = /new ] || /bin/busybox cp -a $entry /new/
    # What is there twice takes memory twice.
    case $entry in /lab | /tools) /bin/busybox rm -r $entry ;; esac
done
exec /bin/busybox switch_root /new /main
";

/// Swap, so that a memory limit that only moves memory there is seen to be none.
const SWAP: &str = "mkswap /dev/ram0 >/dev/null && swapon /dev/ram0 || poweroff -f\n";

/// What a cluster could leave behind, one line each.
const REMAINS: &str = "remains() {
    cut -d ' ' -f 5 /proc/self/mountinfo; ls /sys/class/net; find /sys/fs/cgroup -type d; nft list tables
    for kind in prog map link; do bpftool $kind list; done
    ps -o comm | grep palisade || true
}
nothing_is_left() {
    # The kernel frees programs and groups a moment after the last reference.
    for try in 1 2 3 4 5; do remains >/tmp/after; diff /tmp/before /tmp/after && return; sleep 2; done; return 1
}
";

/// A node has an address (busybox' shell prefers its own `ip`).
const ADDRESS: &str = "/tools/ip link add lab0 type veth peer name lab1 && /tools/ip addr add 198.51.100.2/24 dev lab0 \
     && /tools/ip link set lab1 up && /tools/ip link set lab0 up && /tools/ip route add default via 198.51.100.1 \
     && echo nameserver 198.51.100.1 >/etc/resolv.conf && echo 127.0.0.1 localhost >/etc/hosts \
     && mkdir -p /var/lib && remains >/tmp/before";

/// A cluster's steps. How full the memory is in which all lies says nothing about disks. Progress is drawn for terminals,
/// and the serial line would be one.
const CLUSTER_STEPS: [(&str, &str); 4] = [
    (
        "up",
        "policyctl up --node-name lab --timeout 600 --disk-available-percent 1 --trivy /tools/trivy --lab-db-if-none \
         2>/tmp/progress || { cat /tmp/progress; tail -n 40 /var/lib/palisade/logs/*; false; }",
    ),
    ("demo", "demo || { tail -n 40 /var/lib/palisade/logs/*; false; }"),
    ("down", "policyctl down --purge"),
    (
        "clean",
        "nothing_is_left && test ! -e /var/lib/palisade && test ! -e /run/palisade",
    ),
];

/// Prepares the machine and takes the steps; `/dev/ttyS1` gets one line for each with its exit code.
fn second_stage(steps: &[Step]) -> String {
    let mut script = "#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/tools:/lab/cluster:/bin:/usr/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mkdir -p /dev/shm /dev/pts /dev/mqueue
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
echo root:x:0:0::/root:/bin/sh >/etc/passwd
echo \"lab: Linux $(uname -r), up after $(cut -d ' ' -f 1 /proc/uptime) s\"
echo \"lab: control groups of version 2 with $(cat /sys/fs/cgroup/cgroup.controllers)\"
echo \"lab: security modules $(cat /sys/kernel/security/lsm)\"
"
    .to_owned();
    for (module, parameters) in MODULES {
        _ = writeln!(script, "insmod /modules/{module}.ko {parameters} || poweroff -f");
    }
    script.push_str(SWAP);
    _ = writeln!(
        script,
        "export PALISADE_TEST_PATIENCE={PATIENCE} PALISADE_TEST_FLIPS={FLIPS}"
    );
    script.push_str(REMAINS);
    for Step { label, command } in steps {
        _ = writeln!(script, "echo; echo {}", quoted(&format!("lab: {label}")));
        _ = writeln!(script, "{command}; code=$?");
        _ = writeln!(script, "echo {} $code >/dev/ttyS1", quoted(label));
    }
    script.push_str("echo end >/dev/ttyS1\nsync\npoweroff -f\n");
    script
}

/// For the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Copies a file into the tree, with what it points to rather than a link, and without what is there for debuggers: all of it
/// lies in the memory of the virtual machine.
fn place(from: &Path, tree: &Path, inside: &Path) -> Result<()> {
    let to = tree.join(inside);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    // Fails for what is no program.
    let stripped = command("strip")
        .args(["--strip-debug", "-o"])
        .args([&to, from])
        .stderr(Stdio::null())
        .status();
    if stripped.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The shared libraries of a program and its loader; none of a program that needs none, nor of what is no program.
fn libraries_of(file: &Path) -> Result<Vec<PathBuf>> {
    // It fails for those, and for nothing else that can be read.
    let shown = command("ldd").arg(file).stderr(Stdio::null()).output();
    let shown = shown.with_context(|| format!("cannot ask ldd about {}", file.display()))?;
    let shown = String::from_utf8(shown.stdout).context("ldd printed something other than UTF-8")?;
    let paths = shown.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn find_file(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for path in walk(directory)? {
        if path.file_name().is_some_and(|found| found == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Everything below a directory, parents first; links are not followed.
fn walk(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        }
    }
    Ok(found)
}

fn pack(tree: &Path, image: &Path) -> Result<()> {
    let file = fs::File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    let mut cpio = command("cpio")
        .args(["--create", "--format=newc", "--null", "--owner=0:0", "--quiet"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("cannot start cpio")?;
    let mut names = cpio.stdin.take().context("cpio has no standard input")?;
    for path in walk(tree)? {
        let name = path.strip_prefix(tree).unwrap_or(&path).as_os_str();
        names.write_all(name.as_bytes()).context("cannot write to cpio")?;
        names.write_all(&[0]).context("cannot write to cpio")?;
    }
    drop(names);
    let status = cpio.wait().context("cannot wait for cpio")?;
    ensure!(status.success(), "cpio failed: {status}");
    Ok(())
}

/// Runs the virtual machine until it turns itself off.
fn boot(kernel: &Path, image: &Path, results: &Path, deadline_secs: u32) -> Result<()> {
    if results.exists() {
        fs::remove_file(results).with_context(|| format!("cannot remove the old {}", results.display()))?;
    }
    println!("virtual machine: starting, at most {deadline_secs} s");
    // `timeout` outlives us, so that the machine cannot be forgotten.
    let mut machine = command("timeout");
    machine
        .args(["--foreground", "--kill-after=5", &deadline_secs.to_string()])
        .arg("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "4096",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-nic",
            "none",
        ])
        .args(["-serial", "stdio", "-serial"])
        .arg(format!("file:{}", results.display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        // A panic restarts the machine, and `-no-reboot` makes that its end.
        .args(["-append", "console=ttyS0 loglevel=3 panic=-1 cgroup_no_v1=all"])
        .stdin(Stdio::null());
    process::run(&mut machine)
        .with_context(|| format!("the virtual machine failed, or was not done after {deadline_secs} s"))
}

/// Every step must have said that it succeeded.
fn judge(results: &Path, steps: &[Step]) -> Result<()> {
    let text = fs::read_to_string(results).with_context(|| format!("cannot read {}", results.display()))?;
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    ensure!(
        lines.last() == Some(&"end"),
        "the virtual machine ended before the tests did"
    );
    let mut failed = Vec::new();
    for Step { label, .. } in steps {
        match lines
            .iter()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(' '))
        {
            Some("0") => println!("{label}: passed"),
            Some(code) => failed.push(format!("{label} ended with {code}")),
            None => failed.push(format!("{label} did not run")),
        }
    }
    ensure!(failed.is_empty(), "in the virtual machine: {}", failed.join(", "));
    Ok(())
}
