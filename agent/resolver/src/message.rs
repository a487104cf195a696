//! Questions as pods may ask them, and what an answer says. Pure.
//!
//! A question is read and written anew for the upstream, so nothing else of the pod's packet leaves the node. The
//! answer goes back as it came, but for its identifier: what cannot be read here is not passed on.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
    serialize::binary::BinEncodable as _,
};

/// Longest question that is read: a name has 255 octets at most, and options need few.
pub(crate) const MAX_QUERY_BYTES: usize = 1024;
/// Longest answer by UDP that we ask for and send: what passes every link unfragmented.
pub(crate) const MAX_UDP_BYTES: u16 = 1232;
/// Longest answer by UDP to who does not say otherwise (RFC 1035).
const MIN_UDP_BYTES: u16 = 512;
/// What comes before the question.
const HEADER_BYTES: usize = 12;
/// Longest chain of aliases that is followed.
const MAX_CHAIN: usize = 16;
/// Addresses of one answer that are learned.
const MAX_ADDRESSES: usize = 256;

/// A question of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: Option<Options>,
}

#[derive(Debug, Clone, Copy)]
struct Options {
    max_payload: u16,
    dnssec_ok: bool,
}

/// What makes two questions the same to an upstream. Names are equal whatever their case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    name: Name,
    kind: RecordType,
    recursion_desired: bool,
    checking_disabled: bool,
    dnssec_ok: Option<bool>,
}

/// Why a question is not asked upstream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It deserves no answer.
    Drop,
    /// This is the answer.
    Reply(Vec<u8>),
}

/// What an answer teaches: every address has every name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    /// The name that was asked and its aliases, in lower case without the final dot.
    pub(crate) names: BTreeSet<String>,
    /// Addresses, and how long the answer holds.
    pub(crate) addresses: Vec<(IpAddr, Duration)>,
}

/// Why an upstream's answer is not passed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    #[error("it cannot be read")]
    Malformed,
    #[error("it answers another question")]
    OtherQuestion,
}

impl Question {
    /// Reads a pod's packet.
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, Refusal> {
        if packet.len() > MAX_QUERY_BYTES {
            return Err(Refusal::Drop);
        }
        let (Some(id), Some(flags)) = (word(packet, 0), packet.get(2)) else {
            return Err(Refusal::Drop);
        };
        // An answer is never answered: that is how two servers would talk forever.
        if flags & 0x80 != 0 {
            return Err(Refusal::Drop);
        }
        let reply = |op_code, code| Refusal::Reply(header(id, op_code, code, &[]));
        let message =
            Message::from_vec(packet).map_err(|_malformed| reply(OpCode::Query, ResponseCode::FormErr))?;
        let op_code = message.metadata.op_code;
        if op_code != OpCode::Query {
            return Err(reply(op_code, ResponseCode::NotImp));
        }
        let [query] = message.queries.as_slice() else {
            return Err(reply(op_code, ResponseCode::FormErr));
        };
        let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
        if query.query_class != DNSClass::IN || transfer {
            return Err(reply(op_code, ResponseCode::Refused));
        }
        Ok(Self {
            id,
            query: query.clone(),
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            edns: message.edns.as_ref().map(|edns| Options {
                max_payload: edns.max_payload(),
                dnssec_ok: edns.flags().dnssec_ok,
            }),
        })
    }

    /// The name that is asked.
    pub(crate) fn name(&self) -> &Name {
        &self.query.name
    }

    /// What it has in common with the same question of others.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            name: self.query.name.clone(),
            kind: self.query.query_type,
            recursion_desired: self.recursion_desired,
            checking_disabled: self.checking_disabled,
            dnssec_ok: self.edns.map(|options| options.dnssec_ok),
        }
    }

    /// The question as it goes upstream under `id`.
    pub(crate) fn to_upstream(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if let Some(options) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES);
            edns.set_dnssec_ok(options.dnssec_ok);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// Reads an upstream's answer to this question; the caller has checked its identifier.
    pub(crate) fn read_answer(&self, packet: &[u8]) -> Result<Answer, BadAnswer> {
        let message = Message::from_vec(packet).map_err(|_malformed| BadAnswer::Malformed)?;
        let same = |query: &Query| {
            query.name == self.query.name
                && query.query_type == self.query.query_type
                && query.query_class == self.query.query_class
        };
        // Some servers leave the question out where they refuse it.
        let no_question = message.queries.is_empty() && message.answers.is_empty();
        let [query] = message.queries.as_slice() else {
            return if no_question {
                Ok(Answer::default())
            } else {
                Err(BadAnswer::OtherQuestion)
            };
        };
        let response = message.metadata.message_type == MessageType::Response;
        if !response || message.metadata.op_code != OpCode::Query || !same(query) {
            return Err(BadAnswer::OtherQuestion);
        }
        Ok(learn(&message, query))
    }

    /// The answer for the pod, by UDP cut to what it takes.
    pub(crate) fn to_client(&self, answer: &[u8], by_udp: bool) -> Vec<u8> {
        let limit = self.edns.map_or(MIN_UDP_BYTES, |options| {
            options.max_payload.clamp(MIN_UDP_BYTES, MAX_UDP_BYTES)
        });
        if by_udp && answer.len() > usize::from(limit) {
            let mut message = Message::response(self.id, OpCode::Query);
            message.metadata.truncation = true;
            return self.finish(message);
        }
        let mut answer = answer.to_vec();
        for (to, from) in answer.iter_mut().zip(self.id.to_be_bytes()) {
            *to = from;
        }
        // The name as this pod wrote it: another may have asked, and some resolvers compare the case.
        let own = self.query.name.to_bytes().unwrap_or_default();
        let name = answer.get_mut(HEADER_BYTES..HEADER_BYTES + own.len());
        if let Some(name) = name.filter(|name| name.eq_ignore_ascii_case(&own)) {
            name.copy_from_slice(&own);
        }
        answer
    }

    /// The answer when there is none.
    pub(crate) fn failure(&self) -> Vec<u8> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.response_code = ResponseCode::ServFail;
        self.finish(message)
    }

    fn finish(&self, mut message: Message) -> Vec<u8> {
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES);
            message.set_edns(edns);
        }
        let code = message.metadata.response_code;
        message
            .to_vec()
            .unwrap_or_else(|_too_long| header(self.id, OpCode::Query, code, &[]))
    }
}

/// Whether `packet` is an answer, and under which identifier.
pub(crate) fn answer_id(packet: &[u8]) -> Option<u16> {
    let is_answer = packet.get(2)? & 0x80 != 0;
    is_answer.then(|| word(packet, 0)).flatten()
}

/// Whether an answer was cut to fit its packet.
pub(crate) fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

fn header(id: u16, op_code: OpCode, code: ResponseCode, queries: &[Query]) -> Vec<u8> {
    let mut message = Message::error_msg(id, op_code, code);
    message.add_queries(queries.iter().cloned());
    // Twelve octets without a name in them: this cannot fail, and an empty packet is not sent.
    message.to_vec().unwrap_or_default()
}

/// Follows the aliases from the name that was asked to its addresses. Records of other names, such as glue that
/// nobody asked for, teach nothing.
fn learn(message: &Message, query: &Query) -> Answer {
    let mut answer = Answer::default();
    if message.metadata.response_code != ResponseCode::NoError {
        return answer;
    }
    let mut here = query.name.clone();
    let mut ttl = u32::MAX;
    for _ in 0..MAX_CHAIN {
        answer.names.extend(plain(&here));
        let of_here = || {
            message
                .answers
                .iter()
                .filter(|record| record.name == here && record.dns_class == DNSClass::IN)
        };
        for record in of_here() {
            let address = match &record.data {
                RData::A(address) => IpAddr::V4(address.0),
                RData::AAAA(address) => IpAddr::V6(address.0),
                _ => continue,
            };
            if answer.addresses.len() < MAX_ADDRESSES {
                let holds = Duration::from_secs(record.ttl.min(ttl).into());
                answer.addresses.push((address, holds));
            }
        }
        let alias = of_here().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        match alias {
            Some((target, alias_ttl)) if answer.addresses.is_empty() => {
                ttl = ttl.min(alias_ttl);
                here = target;
            }
            _ => break,
        }
    }
    if answer.addresses.is_empty() {
        answer.names.clear();
    }
    answer
}

/// The name as policies write it. One with other characters, above all a dot inside a label, which would read like
/// two labels, is no name that a policy can mean.
fn plain(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name {
        let ordinary = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !label.iter().all(ordinary) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    let bytes = packet.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{
        Record,
        rdata::{A, CNAME},
    };

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn packet(queries: &[(&str, RecordType)]) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        for (text, kind) in queries {
            message.add_query(Query::query(name(text), *kind));
        }
        message.to_vec().unwrap()
    }

    fn question(text: &str) -> Question {
        Question::parse(&packet(&[(text, RecordType::A)])).unwrap()
    }

    fn answer_to(asked: &str, records: Vec<Record>) -> Vec<u8> {
        let mut message = Message::response(9, OpCode::Query);
        message.add_query(Query::query(name(asked), RecordType::A));
        message.add_answers(records);
        message.to_vec().unwrap()
    }

    fn address(owner: &str, ttl: u32, octets: [u8; 4]) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(octets.into())))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    #[test]
    fn an_answer_teaches_the_chain_and_nothing_beside_it() {
        let records = vec![
            alias("WWW.example.test.", 300, "cdn.net."),
            address("cdn.net.", 900, [192, 0, 2, 1]),
            address("cdn.net.", 20, [192, 0, 2, 2]),
            address("victim.example.test.", 900, [6, 6, 6, 6]),
        ];
        let asked = question("www.example.test.");
        let answer = asked
            .read_answer(&answer_to("www.EXAMPLE.test.", records))
            .unwrap();
        let names: Vec<&str> = answer.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["cdn.net", "www.example.test"]);
        let seconds = Duration::from_secs;
        assert_eq!(
            answer.addresses,
            [
                ([192, 0, 2, 1].into(), seconds(300)),
                ([192, 0, 2, 2].into(), seconds(20))
            ]
        );
    }

    #[test]
    fn a_circle_of_aliases_ends_and_teaches_nothing() {
        let records = vec![
            alias("a.example.test.", 1, "b.example.test."),
            alias("b.example.test.", 1, "a.example.test."),
        ];
        let answer = question("a.example.test.").read_answer(&answer_to("a.example.test.", records));
        assert_eq!(answer, Ok(Answer::default()));
    }

    #[test]
    fn a_dot_inside_a_label_is_no_name_of_a_policy() {
        let dotted = Name::from_labels(vec![b"x.example".as_slice(), b"test".as_slice()]).unwrap();
        assert_eq!(plain(&dotted), None);
        assert_eq!(
            plain(&name("A-1._tcp.Example.test.")).unwrap(),
            "a-1._tcp.example.test"
        );
        assert_eq!(plain(&Name::root()), None);
    }

    #[test]
    fn answers_to_other_questions_are_not_passed_on() {
        let asked = question("a.example.test.");
        let other = answer_to(
            "b.example.test.",
            vec![address("b.example.test.", 1, [1, 2, 3, 4])],
        );
        assert_eq!(asked.read_answer(&other), Err(BadAnswer::OtherQuestion));
        assert_eq!(asked.read_answer(&other[..20]), Err(BadAnswer::Malformed));
        let mut echoed = packet(&[("a.example.test.", RecordType::A)]);
        assert_eq!(asked.read_answer(&echoed), Err(BadAnswer::OtherQuestion));
        echoed[2] |= 0x80;
        assert_eq!(asked.read_answer(&echoed), Ok(Answer::default()));
        assert_eq!(answer_id(&echoed), Some(7));
    }

    #[test]
    fn what_is_no_plain_question_is_refused() {
        let code = |packet: &[u8]| match Question::parse(packet) {
            Err(Refusal::Reply(reply)) => Some(Message::from_vec(&reply).unwrap().metadata.response_code),
            Err(Refusal::Drop) => None,
            Ok(question) => panic!("{question:?}"),
        };
        assert_eq!(
            code(&packet(&[("a.test.", RecordType::AXFR)])),
            Some(ResponseCode::Refused)
        );
        let two = packet(&[("a.test.", RecordType::A), ("b.test.", RecordType::A)]);
        assert_eq!(code(&two), Some(ResponseCode::FormErr));
        assert_eq!(code(&packet(&[])), Some(ResponseCode::FormErr));
        let whole = packet(&[("a.test.", RecordType::A)]);
        assert_eq!(code(&whole[..17]), Some(ResponseCode::FormErr));
        assert_eq!(code(&[0; MAX_QUERY_BYTES + 1]), None);
        assert_eq!(code(&whole[..2]), None);
        let mut update = whole.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&update), Some(ResponseCode::NotImp));
        let mut answer = whole;
        answer[2] |= 0x80;
        assert_eq!(code(&answer), None);
    }

    #[test]
    fn a_long_answer_by_udp_is_cut_and_says_so() {
        let records = (0..60)
            .map(|i| address("a.example.test.", 60, [192, 0, 2, i]))
            .collect();
        let long = answer_to("a.example.test.", records);
        assert!(long.len() > usize::from(MIN_UDP_BYTES));
        let asked = question("a.example.test.");
        let cut = asked.to_client(&long, true);
        assert!(is_truncated(&cut) && cut.len() <= usize::from(MIN_UDP_BYTES));
        let whole = asked.to_client(&long, false);
        assert!(!is_truncated(&whole));
        assert_eq!((word(&whole, 0), &whole[2..]), (Some(7), &long[2..]));
    }

    #[test]
    fn an_answer_that_another_asked_for_has_the_name_as_this_one_wrote_it() {
        let asked = question("wWw.Example.test.");
        let answer = answer_to(
            "www.example.test.",
            vec![address("www.example.test.", 1, [1, 2, 3, 4])],
        );
        assert_eq!(asked.asked(), question("www.example.test.").asked());
        assert_ne!(asked.asked(), question("www.example.tesu.").asked());
        let told = Message::from_vec(&asked.to_client(&answer, true)).unwrap();
        assert_eq!(told.queries[0].name.to_ascii(), "wWw.Example.test.");
        // An answer of a length counts: nothing else of it moves.
        assert_eq!(asked.to_client(&answer[..4], true).len(), 4);
        let other = question("www.example.tesu.").to_client(&answer, true);
        assert_eq!(other[2..], answer[2..]);
    }

    #[test]
    fn nothing_but_the_question_goes_upstream() {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name("a.test."), RecordType::A));
        message.add_additional(address("smuggled.test.", 1, [1, 1, 1, 1]));
        let asked = Question::parse(&message.to_vec().unwrap()).unwrap();
        let sent = Message::from_vec(&asked.to_upstream(99).unwrap()).unwrap();
        assert_eq!((sent.metadata.id, sent.additionals.len()), (99, 0));
        assert_eq!(sent.queries, message.queries);
    }
}
