//! When the tracked flows are looked through, and who waits for that: a look takes many steps, and between two of them the
//! datapath's thread does what else is asked of it.

use ebpf_loader::DatapathError;
use tokio::sync::oneshot;

type Reply = oneshot::Sender<Result<(), DatapathError>>;

/// Looks that are wanted or under way.
#[derive(Default)]
pub(super) struct Looks {
    /// Whether a step is to be taken.
    are_due: bool,
    /// Whether the look under way has seen some flows already.
    has_begun: bool,
    /// Whether its end is a time to tidy up.
    tidies: bool,
    /// Ends of pods that are complete when this look has ended.
    waiting: Vec<Reply>,
    /// Those that it came too far for: the next one's.
    late: Vec<Reply>,
}

impl Looks {
    pub(super) fn are_due(&self) -> bool {
        self.are_due
    }

    /// Has flows looked through for those that are over.
    pub(super) fn want(&mut self) {
        self.are_due = true;
        self.tidies = true;
    }

    /// Answers once no flow of what was taken off before the call is left.
    pub(super) fn answer_when_forgotten(&mut self, reply: Reply) {
        self.are_due = true;
        match self.has_begun {
            true => self.late.push(reply),
            false => self.waiting.push(reply),
        }
    }

    /// A step was taken. Whether it is time to tidy up.
    pub(super) fn went_on(&mut self, more: bool) -> bool {
        self.has_begun = more;
        if more {
            return false;
        }
        // A caller that no longer waits was cancelled.
        for reply in std::mem::take(&mut self.waiting) {
            drop(reply.send(Ok(())));
        }
        self.waiting = std::mem::take(&mut self.late);
        self.are_due = !self.waiting.is_empty();
        std::mem::take(&mut self.tidies)
    }

    /// The look was given up. Who waits does so until another one, at the next time of many, comes to its end.
    pub(super) fn failed(&mut self) -> bool {
        self.has_begun = false;
        self.are_due = false;
        self.waiting.append(&mut self.late);
        std::mem::take(&mut self.tidies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forget(looks: &mut Looks) -> oneshot::Receiver<Result<(), DatapathError>> {
        let (reply, answer) = oneshot::channel();
        looks.answer_when_forgotten(reply);
        answer
    }

    #[test]
    fn whoever_comes_late_waits_for_a_whole_look() {
        let mut looks = Looks::default();
        let mut early = forget(&mut looks);
        assert!(!looks.went_on(true));
        let mut late = forget(&mut looks);
        assert!(!looks.went_on(false));
        assert!(early.try_recv().is_ok() && late.try_recv().is_err() && looks.are_due());
        assert!(!looks.went_on(true));
        assert!(late.try_recv().is_err());
        assert!(!looks.went_on(false));
        assert!(late.try_recv().is_ok() && !looks.are_due());
    }

    #[test]
    fn whoever_waits_for_a_look_that_fails_waits_for_the_next() {
        let mut looks = Looks::default();
        looks.want();
        assert!(!looks.went_on(true));
        let mut answer = forget(&mut looks);
        assert!(looks.failed(), "what else there is to tidy up does not wait");
        assert!(!looks.are_due() && answer.try_recv().is_err());
        looks.want();
        assert!(looks.went_on(false));
        assert!(answer.try_recv().is_ok());
    }
}
