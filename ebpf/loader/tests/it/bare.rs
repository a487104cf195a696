//! Programs that others take off an interface: that is seen, and the interface gets them back.

use std::{
    fs,
    net::TcpListener,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ebpf_loader::{Attachment, Datapath, HostLink};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use policies_ir::tables::Direction;

use crate::{
    host::{LOCAL, endpoint},
    lab::{Lab, attached_both_ways, ip},
    link::{GATEWAY, Pod, TCP, is_cut_off, port, reaches, run},
};

/// How long the kernel may take to free a link that nobody holds.
const PATIENCE: Duration = Duration::from_secs(10);

/// No interface.
const NONE: [u32; 0] = [];

/// As somebody would who cleans up after other programs.
fn strip(lab: &Lab, interface: &str, ifindex: u32) {
    match lab.attachment {
        Attachment::Tcx => {
            let pins = fs::read_dir(lab.pins.join("links")).expect("the pins of links");
            let pins = pins.map(|pin| pin.expect("a pin").path());
            let own = pins.filter(|pin| {
                let name = pin.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{ifindex}-"))
            });
            own.for_each(|pin| fs::remove_file(pin).expect("remove the pin"));
        }
        Attachment::Clsact => run(&format!("tc qdisc del dev {interface} clsact")),
    }
}

attached_both_ways! {
    fn a_pod_is_judged_again_as_before(attachment) {
        let mut pod = Pod::attached(attachment);
        let listen = |port| TcpListener::bind((GATEWAY, port)).expect("listen on the host");
        let (web, other) = (listen(8080), listen(8081));
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, port(TCP, 8080))]);
        let ifindex = pod.ifindex;
        let judged = pod.lab.kernel().attached().expect("list");
        assert_eq!(pod.lab.kernel().bare().expect("ask"), NONE);
        assert!(pod.inside(|| reaches("169.254.1.1:8080") && is_cut_off("169.254.1.1:8081")));

        strip(&pod.lab, "palhost", ifindex);
        let deadline = Instant::now() + PATIENCE;
        while pod.inside(|| is_cut_off("169.254.1.1:8081")) {
            assert!(Instant::now() < deadline, "the programs are still there");
        }
        assert_eq!(pod.lab.kernel().bare().expect("ask"), [ifindex]);
        assert!(pod.lab.kernel().attached().expect("list").is_empty(), "nothing judges it");

        pod.lab.kernel().restore(ifindex).expect("attach again");
        assert_eq!(pod.lab.kernel().bare().expect("ask"), NONE);
        assert_eq!(pod.lab.kernel().attached().expect("list"), judged);
        assert!(pod.inside(|| is_cut_off("169.254.1.1:8081")), "denied, as before");
        assert!(pod.inside(|| reaches("169.254.1.1:8080")), "allowed, as before");
        drop((web, other));

        run("ip link del palhost");
        assert_eq!(pod.lab.kernel().bare().expect("ask"), NONE, "it is gone, not bare");
        pod.lab.kernel().restore(ifindex).expect("nothing to do");
    }

    /// Its index stays, and so do its name and addresses: nobody who compares those would see it.
    fn an_interface_that_went_to_another_namespace_and_back_is_judged_again(attachment) {
        let mut lab = Lab::attached(attachment);
        run("ip link add uplink type veth peer name far");
        let ifindex = if_nametoindex("uplink").expect("the interface");
        let link = HostLink {
            ifindex,
            addresses: [(ip("192.0.2.1"), endpoint(LOCAL))].into(),
            forward: None,
        };
        lab.kernel().attach_host(&link).expect("attach");
        assert_eq!(lab.kernel().bare().expect("ask"), NONE);

        let (tell, told) = mpsc::channel();
        let (come, came) = mpsc::channel();
        let here = nix::unistd::gettid();
        let elsewhere = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("the test waits");
            came.recv().expect("the interface comes");
            run(&format!("ip link set uplink netns {here}"));
        });
        let there = told.recv().expect("the thread lives");
        run(&format!("ip link set uplink netns {there}"));
        assert_eq!(lab.kernel().bare().expect("ask"), NONE, "it is not there");
        come.send(()).expect("the thread waits");
        elsewhere.join().expect("it comes back");
        assert_eq!(if_nametoindex("uplink"), Ok(ifindex));

        let bare = lab.kernel().bare().expect("ask");
        if attachment == Attachment::Clsact {
            assert_eq!(bare, [ifindex], "its disciplines stayed behind");
        }
        for ifindex in bare {
            lab.kernel().restore(ifindex).expect("attach again");
        }
        assert_eq!(lab.kernel().bare().expect("ask"), NONE);
        assert_eq!(lab.kernel().attached_hosts().expect("list"), [link]);
        strip(&lab, "uplink", ifindex);
        // Until the kernel has let go of the old program it takes no second one of it.
        let deadline = Instant::now() + PATIENCE;
        while lab.kernel().bare().expect("ask") != [ifindex] || lab.kernel().restore(ifindex).is_err() {
            assert!(Instant::now() < deadline, "the programs are still there");
        }
        assert_eq!(lab.kernel().bare().expect("ask"), NONE);
    }
}
