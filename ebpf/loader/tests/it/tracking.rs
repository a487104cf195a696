//! What opens a connection, what ends it, and what a third party that knows addresses and ports can do to it: by hand and
//! through a real link, over IPv4 and over IPv6.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use ebpf_abi::{END_SILENT, RECORD_END, RECORD_START};
use ebpf_loader::{Datapath, Reason, TrackedFlow, monotonic_now};
use policies_ir::tables::{Direction, Service, Verdict};

use crate::{
    frames::{ACK, Ends, FIN, RST, SCTP, SYN, TCP, UDP, chunk, frame, segment, udp},
    lab::{EACH_REPORTED, Lab, Place, everywhere},
    looks::age,
};

/// First sequence numbers of client and server.
const CLIENT: u32 = 0xffff_fff0;
const SERVER: u32 = 5_000;
/// The client's numbers wrap around early.
const fn client(offset: u32) -> u32 {
    CLIENT.wrapping_add(offset)
}
const NOTHING: &[u8] = &[];

const SECONDS_HALF_OPEN: u64 = 30;
const SECONDS_RESET: u64 = 10;
const SECONDS_CLOSED: u64 = 60;
const SECONDS_HALF_CLOSED: u64 = 600;
const SECONDS_OPEN: u64 = 24 * 3600;

everywhere! {
    a_connection_is_established_by_the_whole_handshake_only,
    a_connection_that_both_ends_open_is_one,
    a_spoofed_reset_ends_nothing,
    a_reset_in_sequence_ends_the_connection,
    a_connection_that_both_ends_close_is_over,
    window_scaling_is_understood,
    a_syn_on_a_live_connection_changes_nothing,
    a_peer_that_poses_as_the_client_does_not_forget_its_connection,
    a_new_connection_on_old_ports_is_judged_anew,
    sctp_associations_open_by_init_and_end_by_the_right_tag,
    a_question_and_its_answer_are_forgotten_sooner_than_a_stream,
    a_denied_flow_makes_way_for_what_policy_allows_in_the_other_direction,
    what_nobody_forgets_is_over_all_the_same,
}

/// A lab, and who talks with whom in it.
struct Talk {
    lab: Lab,
    out: Ends,
}

impl Deref for Talk {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Talk {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// Policy allows `direction` to open what it likes.
fn lab(place: Place, direction: Direction) -> Talk {
    let mut lab = Lab::judging(place.way, EACH_REPORTED);
    lab.allow(&[(direction, 0, Service::Any)]);
    Talk {
        lab,
        out: place.out(),
    }
}

/// Sends a segment that must pass. The pod is the client, on port 1000.
#[track_caller]
fn pass(lab: &mut Talk, direction: Direction, flags: u8, sequence: u32, acknowledged: u32, payload: &[u8]) {
    let (ends, [source, destination]) = match direction {
        Direction::Egress => (lab.out, [1000, 80]),
        Direction::Ingress => (lab.out.reversed(), [80, 1000]),
    };
    let bytes = segment(source, destination, flags, sequence, acknowledged, payload);
    lab.assert_allowed(direction, &frame(ends, TCP, &bytes));
}

/// The handshake of a connection that the pod opens.
fn connect(lab: &mut Talk) {
    pass(lab, Direction::Egress, SYN, CLIENT, 0, NOTHING);
    pass(lab, Direction::Ingress, SYN | ACK, SERVER, client(1), NOTHING);
    pass(lab, Direction::Egress, ACK, client(1), SERVER + 1, NOTHING);
}

fn flows(lab: &mut Talk) -> Vec<TrackedFlow> {
    lab.kernel().tracked_flows().expect("flows")
}

#[track_caller]
fn assert_established(lab: &mut Talk, expected: bool) {
    let flows = flows(lab);
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert!(flows.iter().all(|flow| flow.established == expected), "{flows:?}");
}

/// The one flow is remembered this long, and no longer. It is gone afterwards.
#[track_caller]
fn assert_remembered(lab: &mut Talk, seconds: u64) {
    let now = monotonic_now();
    // Its last packet may have been some seconds ago on a busy machine.
    let before = now + Duration::from_secs(seconds - seconds.min(10) / 2);
    assert_eq!(
        lab.kernel().expire(before).expect("expire").removed,
        0,
        "forgotten early"
    );
    let after = now + Duration::from_secs(seconds + 1);
    assert_eq!(
        lab.kernel().expire(after).expect("expire").removed,
        1,
        "remembered too long"
    );
}

fn a_connection_is_established_by_the_whole_handshake_only(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    pass(&mut lab, Direction::Egress, SYN, CLIENT, 0, NOTHING);
    // Answers to something else, and a client that goes on without an answer.
    pass(&mut lab, Direction::Ingress, SYN | ACK, SERVER, CLIENT, NOTHING);
    pass(
        &mut lab,
        Direction::Ingress,
        SYN | ACK,
        SERVER,
        client(2),
        NOTHING,
    );
    pass(&mut lab, Direction::Ingress, ACK, SERVER, client(1), NOTHING);
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER + 1, NOTHING);
    assert_established(&mut lab, false);
    pass(
        &mut lab,
        Direction::Ingress,
        SYN | ACK,
        SERVER,
        client(1),
        NOTHING,
    );
    // The client acknowledges what the server never said.
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER, NOTHING);
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER + 2, NOTHING);
    assert_established(&mut lab, false);
    assert_remembered(&mut lab, SECONDS_HALF_OPEN);

    connect(&mut lab);
    assert_established(&mut lab, true);
    assert_remembered(&mut lab, SECONDS_OPEN);
}

fn a_connection_that_both_ends_open_is_one(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    lab.allow(&[
        (Direction::Egress, 0, Service::Any),
        (Direction::Ingress, 0, Service::Any),
    ]);
    pass(&mut lab, Direction::Egress, SYN, CLIENT, 0, NOTHING);
    pass(&mut lab, Direction::Ingress, SYN, SERVER, 0, NOTHING);
    pass(
        &mut lab,
        Direction::Egress,
        SYN | ACK,
        CLIENT,
        SERVER + 1,
        NOTHING,
    );
    pass(
        &mut lab,
        Direction::Ingress,
        SYN | ACK,
        SERVER,
        client(1),
        NOTHING,
    );
    assert_established(&mut lab, true);
}

fn a_spoofed_reset_ends_nothing(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    connect(&mut lab);
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER + 1, &[7; 100]);
    pass(
        &mut lab,
        Direction::Ingress,
        ACK,
        SERVER + 1,
        client(101),
        &[7; 50],
    );
    pass(
        &mut lab,
        Direction::Egress,
        ACK,
        client(101),
        SERVER + 51,
        NOTHING,
    );
    // The client expects 5,051 now; a window of 65,535 lies behind it, and stacks answer all of that with a question.
    for sequence in [0, SERVER, SERVER + 50, SERVER + 52, SERVER + 60_000, u32::MAX] {
        pass(&mut lab, Direction::Ingress, RST, sequence, 0, NOTHING);
        pass(
            &mut lab,
            Direction::Ingress,
            RST | ACK,
            sequence,
            client(101),
            NOTHING,
        );
    }
    // Ends that lie out of the windows, or acknowledge what was not sent.
    for (sequence, acknowledged) in [
        (SERVER + 51 + 70_000, client(101)),
        (SERVER.wrapping_sub(70_000), client(101)),
        (SERVER + 51, client(102)),
        (SERVER + 51, client(0).wrapping_sub(70_000)),
    ] {
        pass(
            &mut lab,
            Direction::Ingress,
            FIN | ACK,
            sequence,
            acknowledged,
            NOTHING,
        );
    }
    // Nor does it help to move the window first.
    pass(
        &mut lab,
        Direction::Ingress,
        ACK,
        SERVER + 1_000_000,
        client(101),
        &[7; 9],
    );
    pass(&mut lab, Direction::Ingress, RST, SERVER + 1_000_009, 0, NOTHING);
    assert_established(&mut lab, true);
    assert_remembered(&mut lab, SECONDS_OPEN);
}

fn a_reset_in_sequence_ends_the_connection(place: Place) {
    for (direction, sequence) in [(Direction::Ingress, SERVER + 1), (Direction::Egress, client(1))] {
        let mut lab = lab(place, Direction::Egress);
        connect(&mut lab);
        pass(&mut lab, direction, RST, sequence, 0, NOTHING);
        assert_remembered(&mut lab, SECONDS_RESET);
    }
    // A refused connection: the reset acknowledges the SYN; one that does not is somebody else's.
    let mut lab = lab(place, Direction::Egress);
    pass(&mut lab, Direction::Egress, SYN, CLIENT, 0, NOTHING);
    pass(&mut lab, Direction::Ingress, RST | ACK, 0, client(2), NOTHING);
    pass(&mut lab, Direction::Ingress, RST, client(1), 0, NOTHING);
    let now = monotonic_now();
    let later = now + Duration::from_secs(SECONDS_RESET + 2);
    assert_eq!(lab.kernel().expire(later).expect("expire").removed, 0);
    pass(&mut lab, Direction::Ingress, RST | ACK, 0, client(1), NOTHING);
    assert_remembered(&mut lab, SECONDS_RESET);
}

fn a_connection_that_both_ends_close_is_over(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    connect(&mut lab);
    pass(
        &mut lab,
        Direction::Egress,
        FIN | ACK,
        client(1),
        SERVER + 1,
        &[7; 10],
    );
    // The server may go on for long.
    pass(
        &mut lab,
        Direction::Ingress,
        ACK,
        SERVER + 1,
        client(12),
        &[7; 1000],
    );
    let now = monotonic_now();
    let soon = now + Duration::from_secs(SECONDS_HALF_CLOSED - 5);
    assert_eq!(lab.kernel().expire(soon).expect("expire").removed, 0);
    pass(
        &mut lab,
        Direction::Ingress,
        FIN | ACK,
        SERVER + 1001,
        client(12),
        NOTHING,
    );
    pass(
        &mut lab,
        Direction::Egress,
        ACK,
        client(12),
        SERVER + 1002,
        NOTHING,
    );
    assert_remembered(&mut lab, SECONDS_CLOSED);
}

fn window_scaling_is_understood(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    // Maximum segment size, then a scale of 7: windows of up to 8 MiB.
    let scaled = |source, destination, flags, sequence, acknowledged| {
        let mut bytes = segment(
            source,
            destination,
            flags,
            sequence,
            acknowledged,
            &[2, 4, 5, 0xb4, 1, 3, 3, 7],
        );
        if let Some(offset) = bytes.get_mut(12) {
            *offset = 0x70;
        }
        bytes
    };
    let out = place.out();
    let far = 4_000_000;
    lab.assert_allowed(
        Direction::Egress,
        &frame(out, TCP, &scaled(1000, 80, SYN, CLIENT, 0)),
    );
    lab.assert_allowed(
        Direction::Ingress,
        &frame(
            out.reversed(),
            TCP,
            &scaled(80, 1000, SYN | ACK, SERVER, client(1)),
        ),
    );
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER + 1, NOTHING);
    pass(&mut lab, Direction::Ingress, ACK, SERVER + 1, client(1), NOTHING);
    // Far within the scaled window, as after a burst whose middle is lost.
    pass(&mut lab, Direction::Egress, ACK, client(far), SERVER + 1, &[7; 9]);
    pass(&mut lab, Direction::Egress, RST, client(far + 9), 0, NOTHING);
    assert_remembered(&mut lab, SECONDS_RESET);
}

fn a_syn_on_a_live_connection_changes_nothing(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    connect(&mut lab);
    // From the peer, policy denies it; from the pod it is a stray. Neither is an end, or a new beginning.
    let syn = frame(
        place.out().reversed(),
        TCP,
        &segment(80, 1000, SYN, 77, 0, NOTHING),
    );
    lab.assert_denied(Direction::Ingress, &syn, Reason::Policy);
    pass(&mut lab, Direction::Egress, SYN, 99, 0, NOTHING);
    assert!(lab.record().is_none(), "a SYN on a live connection opens nothing");
    assert_established(&mut lab, true);
    pass(&mut lab, Direction::Egress, ACK, client(1), SERVER + 1, &[7; 10]);
    // What a client does whose server has asked back (RFC 5961): its reset is in sequence, and then it may open anew.
    pass(&mut lab, Direction::Egress, RST, client(11), 0, NOTHING);
    let syn = frame(place.out(), TCP, &segment(1000, 80, SYN, 99, 0, NOTHING));
    let (_, record) = lab.judge(Direction::Egress, &syn);
    assert_eq!(
        record.map(|record| record.verdict),
        Some(1),
        "judged anew, and reported"
    );
    assert_established(&mut lab, false);
}

fn a_peer_that_poses_as_the_client_does_not_forget_its_connection(place: Place) {
    // The pod is the server here; the SYN comes from outside, where addresses can be spoofed.
    let mut lab = lab(place, Direction::Ingress);
    pass(&mut lab, Direction::Ingress, SYN, SERVER, 0, NOTHING);
    pass(
        &mut lab,
        Direction::Egress,
        SYN | ACK,
        CLIENT,
        SERVER + 1,
        NOTHING,
    );
    pass(&mut lab, Direction::Ingress, ACK, SERVER + 1, client(1), NOTHING);
    for sequence in [0, SERVER, SERVER + 1, 123_456] {
        pass(&mut lab, Direction::Ingress, SYN, sequence, 0, NOTHING);
    }
    assert_established(&mut lab, true);
    assert_remembered(&mut lab, SECONDS_OPEN);
}

fn a_new_connection_on_old_ports_is_judged_anew(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    connect(&mut lab);
    pass(&mut lab, Direction::Ingress, RST, SERVER + 1, 0, NOTHING);
    // The server's own attempt, on the ports of a connection that is over.
    let syn = frame(
        place.out().reversed(),
        TCP,
        &segment(80, 1000, SYN, 77, 0, NOTHING),
    );
    lab.assert_denied(Direction::Ingress, &syn, Reason::Policy);
    pass(&mut lab, Direction::Egress, SYN, 99, 0, NOTHING);
    pass(&mut lab, Direction::Ingress, SYN | ACK, 50, 100, NOTHING);
    pass(&mut lab, Direction::Egress, ACK, 100, 51, NOTHING);
    assert_established(&mut lab, true);
}

fn sctp_associations_open_by_init_and_end_by_the_right_tag(place: Place) {
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    const COOKIE_ECHO: u8 = 10;
    const COOKIE_ACK: u8 = 11;
    let out = place.out();
    let sent = |verification, kind, flags| frame(out, SCTP, &chunk(1000, 80, verification, kind, flags, 7));
    let answered = |verification, kind, flags| {
        frame(
            out.reversed(),
            SCTP,
            &chunk(80, 1000, verification, kind, flags, 9),
        )
    };
    let mut lab = lab(place, Direction::Egress);
    for (end, flags, verification, ends) in [
        (ABORT, 0, 7, true),
        (ABORT, 1, 9, true),
        (SHUTDOWN_COMPLETE, 0, 7, true),
        (ABORT, 0, 8, false),
        (ABORT, 1, 7, true),
        (ABORT, 1, 8, false),
        (SHUTDOWN_COMPLETE, 0, 0, false),
    ] {
        lab.assert_denied(Direction::Egress, &sent(7, COOKIE_ECHO, 0), Reason::NoConnection);
        lab.assert_denied(Direction::Egress, &sent(1, 1, 0), Reason::BadHeader);
        lab.assert_allowed(Direction::Egress, &sent(0, 1, 0));
        lab.assert_allowed(Direction::Ingress, &answered(7, INIT_ACK, 0));
        assert_established(&mut lab, false);
        lab.assert_allowed(Direction::Egress, &sent(8, COOKIE_ECHO, 0));
        assert_established(&mut lab, false);
        lab.assert_allowed(Direction::Egress, &sent(9, COOKIE_ECHO, 0));
        lab.assert_allowed(Direction::Ingress, &answered(7, COOKIE_ACK, 0));
        assert_established(&mut lab, true);
        lab.assert_allowed(Direction::Ingress, &answered(verification, end, flags));
        assert_remembered(&mut lab, if ends { SECONDS_RESET } else { 600 });
    }
}

fn a_question_and_its_answer_are_forgotten_sooner_than_a_stream(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    let out = place.out();
    lab.assert_allowed(Direction::Egress, &frame(out, UDP, &udp(1, 53)));
    assert_established(&mut lab, false);
    lab.assert_allowed(Direction::Ingress, &frame(out.reversed(), UDP, &udp(53, 1)));
    assert_established(&mut lab, true);
    assert_remembered(&mut lab, 30);
}

fn a_denied_flow_makes_way_for_what_policy_allows_in_the_other_direction(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    let out = place.out();
    let sent = frame(out, UDP, &udp(51820, 51820));
    let back = frame(out.reversed(), UDP, &udp(51820, 51820));
    lab.assert_allowed(Direction::Egress, &sent);
    let last_allowed = monotonic_now();
    lab.allow(&[(Direction::Ingress, 0, Service::Any)]);
    // Both ends go on trying; that keeps the denial no longer than its minute.
    while monotonic_now() < last_allowed + Duration::from_millis(50) {
        lab.assert_denied(Direction::Egress, &sent, Reason::Policy);
        lab.assert_denied(Direction::Ingress, &back, Reason::Policy);
    }
    let minute = last_allowed + Duration::from_secs(60);
    let expired = lab.kernel().expire(minute).expect("expire");
    assert_eq!(expired.removed, 1);
    lab.assert_allowed(Direction::Ingress, &back);
    lab.assert_allowed(Direction::Egress, &sent);
}

/// As while no agent looks through the flows: who was asked once may not speak for ever, to whoever has the port by then.
fn what_nobody_forgets_is_over_all_the_same(place: Place) {
    let mut lab = lab(place, Direction::Egress);
    let out = place.out();
    let asks = frame(out, UDP, &udp(1, 53));
    let answers = frame(out.reversed(), UDP, &udp(53, 1));
    lab.assert_allowed(Direction::Egress, &asks);
    lab.assert_allowed(Direction::Ingress, &answers);
    age(&lab, Duration::from_secs(20));
    lab.assert_allowed(Direction::Ingress, &answers);
    // A stream by now, which has three minutes.
    age(&lab, Duration::from_secs(170));
    lab.assert_allowed(Direction::Ingress, &answers);
    age(&lab, Duration::from_secs(181));
    lab.assert_denied(Direction::Ingress, &answers, Reason::Policy);

    // Whoever may open a flow opens another, which takes the place of the first.
    assert_eq!(lab.run(Direction::Egress, &asks), Verdict::Allow);
    let told: Vec<_> = std::iter::from_fn(|| lab.record())
        .map(|record| (record.kind, record.end))
        .collect();
    assert_eq!(told, [(RECORD_END, END_SILENT), (RECORD_START, 0)]);
    assert_established(&mut lab, false);
    let counters = lab.kernel().counters().expect("counters");
    let fill = counters.fill.iter().find(|fill| fill.map == "FLOWS");
    assert_eq!(fill.expect("the table of flows").entries, 1);
    age(&lab, Duration::from_secs(31));
    lab.assert_denied(Direction::Ingress, &answers, Reason::Policy);

    // A connection is not told from its middle whether it lives: what it is silent for, its receiver answers.
    connect(&mut lab);
    age(&lab, Duration::from_secs(2 * SECONDS_OPEN));
    pass(&mut lab, Direction::Ingress, ACK, SERVER + 1, client(1), NOTHING);
}
