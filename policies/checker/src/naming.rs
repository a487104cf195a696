//! Short names for many workloads and many addresses.

use std::collections::BTreeSet;

use crate::{
    model::{Model, shown},
    region::Region,
};

/// Names that are listed before the rest is counted.
const LISTED: usize = 3;

/// Name of some workloads of one namespace, as short as it can be: one name, what all names begin with, or a list.
pub(crate) fn workloads(model: &Model, members: &[usize]) -> String {
    let names: Vec<String> = members.iter().map(|member| model.name(*member)).collect();
    of_names(&names, namespace_size(model, members))
}

/// All names, for where the short one is another's too.
pub(crate) fn all_workloads(model: &Model, members: &[usize]) -> String {
    let names: Vec<String> = members.iter().map(|member| model.name(*member)).collect();
    names.join(", ")
}

/// Name of some addresses.
pub(crate) fn addresses(region: &Region) -> String {
    if *region == Region::everything() {
        return "any address".to_owned();
    }
    region.text(LISTED)
}

/// Some names of hosts.
pub(crate) fn names(names: &BTreeSet<String>) -> String {
    let listed: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len().checked_sub(LISTED) {
        Some(more) if more > 0 => format!("{} and {more} more", listed.join(", ")),
        _ => listed.join(", "),
    }
}

/// Name of some addresses that are taken to have names.
pub(crate) fn named_addresses(names: &str, region: &Region) -> String {
    if *region == Region::everything() {
        return names.to_owned();
    }
    format!("{names} in {}", addresses(region))
}

/// `whole` is how many workloads there are in the namespace.
pub(crate) fn of_names(names: &[String], whole: usize) -> String {
    let [first, .., _] = names else {
        return names.first().cloned().unwrap_or_default();
    };
    let count = names.len();
    let split = |name: &str| match name.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => (String::new(), name.to_owned()),
    };
    let (namespace, first) = split(first);
    let mut common: Vec<&str> = first.split('-').collect();
    let mut same_namespace = true;
    let parts: Vec<(String, String)> = names.iter().map(|name| split(name)).collect();
    for (of, name) in &parts {
        same_namespace &= *of == namespace;
        let same = common.iter().zip(name.split('-')).take_while(|(a, b)| **a == *b);
        let same = same.count();
        common.truncate(same);
    }
    if !same_namespace {
        return names.join(", ");
    }
    if count == whole {
        return format!("{namespace}/* ({count})");
    }
    if !common.is_empty() {
        return format!("{namespace}/{}-* ({count})", common.join("-"));
    }
    let listed: Vec<&str> = parts.iter().take(LISTED).map(|(_, name)| name.as_str()).collect();
    match count.checked_sub(LISTED) {
        Some(more) if more > 0 => format!("{namespace}/{{{},+{more}}}", listed.join(",")),
        _ => format!("{namespace}/{{{}}}", listed.join(",")),
    }
}

fn namespace_size(model: &Model, members: &[usize]) -> usize {
    let namespace = |member: usize| {
        model
            .member(member)
            .map(|member| member.workload.namespace.as_str())
    };
    let Some(first) = members.first() else { return 0 };
    let all = 0..model.cluster().members.len();
    all.filter(|member| namespace(*member) == namespace(*first))
        .count()
}

/// Namespace of a workload by its name, or nothing for what has none.
pub(crate) fn namespace_of(model: &Model, member: usize) -> Option<String> {
    let member = model.member(member)?;
    let namespace = &member.workload.namespace;
    (!namespace.is_empty() && shown(member).contains('/')).then(|| namespace.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(names: &[&str], whole: usize) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        of_names(&names, whole)
    }

    #[test]
    fn names_are_short() {
        assert_eq!(name(&["shop/web"], 9), "shop/web");
        assert_eq!(name(&["shop/web-7d-a", "shop/web-7d-b"], 9), "shop/web-7d-* (2)");
        assert_eq!(name(&["shop/web-1", "shop/db"], 9), "shop/{web-1,db}");
        assert_eq!(
            name(&["shop/a", "shop/b", "shop/c", "shop/d"], 9),
            "shop/{a,b,c,+1}"
        );
        assert_eq!(name(&["shop/a", "shop/b"], 2), "shop/* (2)");
        assert_eq!(name(&["shop/a", "pay/a"], 2), "shop/a, pay/a");
    }
}
