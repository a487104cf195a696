//! A relation as few products: each rule of a policy allows all of its ends all of its services, so rules that say exactly
//! what was seen cover the pairs that were seen, and no others, with products.
//!
//! The fewest are looked for with a bounded number of steps (the question is NP-hard): where those do not do, there is one
//! rule for each set of services that some end has, at most. What is found is never redundant either way: no rule, no end of
//! a rule and no service of a rule could go.

use std::collections::{BTreeMap, BTreeSet};

/// Work of one search, in pairs that are looked at: a fraction of a second.
const BUDGET: usize = 4_000_000;
/// Products that are tried; those of the pairs as they are come first.
const MAX_PRODUCTS: usize = 512;

/// Some ends with some services.
pub(super) type Product<A, B> = (BTreeSet<A>, BTreeSet<B>);

/// Products that together are `pairs`.
pub(super) fn cover<A: Ord + Copy, B: Ord + Copy>(pairs: &BTreeSet<(A, B)>) -> Vec<Product<A, B>> {
    let (rows, columns) = (
        alike(pairs.iter().copied()),
        alike(pairs.iter().map(|(a, b)| (*b, *a))),
    );
    let row_of = |a: A| rows.iter().position(|row| row.contains(&a));
    let column_of = |b: B| columns.iter().position(|column| column.contains(&b));
    // What is alike stays together: any product may take all of it or nothing.
    let cells: BTreeSet<Cell> = pairs
        .iter()
        .filter_map(|(a, b)| Some((row_of(*a)?, column_of(*b)?)))
        .collect();
    let mut chosen = Search::new(&cells).fewest();
    prune(&mut chosen);
    let all = |groups: &[BTreeSet<A>], of: &BTreeSet<usize>| -> BTreeSet<A> {
        of.iter()
            .filter_map(|i| groups.get(*i))
            .flatten()
            .copied()
            .collect()
    };
    let services = |of: &BTreeSet<usize>| -> BTreeSet<B> {
        of.iter()
            .filter_map(|i| columns.get(*i))
            .flatten()
            .copied()
            .collect()
    };
    chosen
        .iter()
        .map(|(of_rows, of_columns)| (all(&rows, of_rows), services(of_columns)))
        .collect()
}

type Cell = (usize, usize);
type Rectangle = (BTreeSet<usize>, BTreeSet<usize>);

/// Firsts that go with the same seconds.
fn alike<A: Ord + Copy, B: Ord>(pairs: impl Iterator<Item = (A, B)>) -> Vec<BTreeSet<A>> {
    let mut of: BTreeMap<A, BTreeSet<B>> = BTreeMap::new();
    for (a, b) in pairs {
        of.entry(a).or_default().insert(b);
    }
    let mut groups: BTreeMap<BTreeSet<B>, BTreeSet<A>> = BTreeMap::new();
    for (a, with) in of {
        groups.entry(with).or_default().insert(a);
    }
    groups.into_values().collect()
}

/// Branch and bound over the products that no other product holds.
struct Search {
    products: Vec<Rectangle>,
    /// Products that hold each cell.
    holders: Vec<Vec<usize>>,
    /// Cells of each product.
    held: Vec<Vec<usize>>,
    /// How many chosen products hold each cell.
    covered: Vec<usize>,
    chosen: Vec<usize>,
    best: Vec<usize>,
    steps: usize,
}

impl Search {
    fn new(cells: &BTreeSet<Cell>) -> Self {
        let mut columns_of: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (row, column) in cells {
            columns_of.entry(*row).or_default().insert(*column);
        }
        // The columns of a largest product are those that some rows have in common.
        let own: Vec<&BTreeSet<usize>> = columns_of.values().collect();
        let mut shared: Vec<BTreeSet<usize>> = own.iter().map(|columns| (*columns).clone()).collect();
        let mut known: BTreeSet<BTreeSet<usize>> = shared.iter().cloned().collect();
        let mut next = 0;
        while let Some(columns) = shared.get(next).cloned() {
            for other in &own {
                let common: BTreeSet<usize> = columns.intersection(other).copied().collect();
                if !common.is_empty() && shared.len() < MAX_PRODUCTS && known.insert(common.clone()) {
                    shared.push(common);
                }
            }
            next += 1;
        }
        let rows_with = |columns: &BTreeSet<usize>| -> BTreeSet<usize> {
            let rows = columns_of.iter().filter(|(_, of)| columns.is_subset(of));
            rows.map(|(row, _)| *row).collect()
        };
        let products: Vec<Rectangle> = shared
            .into_iter()
            .map(|columns| (rows_with(&columns), columns))
            .collect();
        let number: BTreeMap<Cell, usize> = cells.iter().copied().zip(0..).collect();
        let cells_of = |(rows, columns): &Rectangle| -> Vec<usize> {
            let all = rows
                .iter()
                .flat_map(|row| columns.iter().map(move |column| (*row, *column)));
            all.filter_map(|cell| number.get(&cell).copied()).collect()
        };
        let held: Vec<Vec<usize>> = products.iter().map(cells_of).collect();
        let mut holders = vec![Vec::new(); cells.len()];
        for (product, cells) in held.iter().enumerate() {
            for cell in cells {
                holders
                    .get_mut(*cell)
                    .into_iter()
                    .for_each(|holders| holders.push(product));
            }
        }
        Self {
            covered: vec![0; cells.len()],
            // One for each row, which are all different.
            best: (0..columns_of.len()).collect(),
            chosen: Vec::new(),
            steps: BUDGET / cells.len().max(1),
            products,
            holders,
            held,
        }
    }

    fn fewest(mut self) -> Vec<Rectangle> {
        let least = self.least();
        self.look(least);
        let best = self.best.iter().filter_map(|i| self.products.get(*i));
        best.cloned().collect()
    }

    /// Cells no two of which are in one product need one product each.
    fn least(&self) -> usize {
        let mut order: Vec<&Vec<usize>> = self.holders.iter().collect();
        order.sort_by_key(|holders| holders.len());
        let mut taken: BTreeSet<usize> = BTreeSet::new();
        let mut count = 0;
        for holders in order {
            if !holders.iter().any(|product| taken.contains(product)) {
                taken.extend(holders);
                count += 1;
            }
        }
        count
    }

    /// Tries to complete what is chosen with fewer products than the best so far.
    fn look(&mut self, least: usize) {
        let open = self
            .covered
            .iter()
            .zip(&self.holders)
            .filter(|(covered, _)| **covered == 0);
        let hardest = open
            .map(|(_, holders)| holders)
            .min_by_key(|holders| holders.len())
            .cloned();
        let Some(hardest) = hardest else {
            if self.chosen.len() < self.best.len() {
                self.best.clone_from(&self.chosen);
            }
            return;
        };
        for product in hardest {
            let room = self.chosen.len() + 1 < self.best.len();
            if self.steps == 0 || !room || self.best.len() == least {
                return;
            }
            self.steps -= 1;
            self.choose(product);
            self.look(least);
            self.undo(product);
        }
    }

    fn choose(&mut self, product: usize) {
        self.chosen.push(product);
        for cell in self.held.get(product).into_iter().flatten() {
            if let Some(count) = self.covered.get_mut(*cell) {
                *count += 1;
            }
        }
    }

    fn undo(&mut self, product: usize) {
        self.chosen.pop();
        for cell in self.held.get(product).into_iter().flatten() {
            if let Some(count) = self.covered.get_mut(*cell) {
                *count -= 1;
            }
        }
    }
}

/// Takes out what other products say too: whole ones, and ends and services of those that stay.
fn prune(chosen: &mut Vec<Rectangle>) {
    for i in 0..chosen.len() {
        let Some((rows, columns)) = chosen.get(i).cloned() else {
            continue;
        };
        let elsewhere = |chosen: &[Rectangle], row: usize, column: usize| {
            let mut others = chosen.iter().enumerate().filter(|(other, _)| *other != i);
            others.any(|(_, (rows, columns))| rows.contains(&row) && columns.contains(&column))
        };
        for row in &rows {
            if columns.iter().all(|column| elsewhere(chosen, *row, *column))
                && let Some(own) = chosen.get_mut(i)
            {
                own.0.remove(row);
            }
        }
        let rows = chosen.get(i).map(|own| own.0.clone()).unwrap_or_default();
        for column in &columns {
            if rows.iter().all(|row| elsewhere(chosen, *row, *column))
                && let Some(own) = chosen.get_mut(i)
            {
                own.1.remove(column);
            }
        }
    }
    chosen.retain(|(rows, columns)| !rows.is_empty() && !columns.is_empty());
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const SIDES: u8 = 4;

    fn pairs_of(products: &[Product<u8, u8>]) -> BTreeSet<(u8, u8)> {
        let pairs = |(sides, services): &Product<u8, u8>| {
            let services = services.clone();
            let pairs = sides
                .clone()
                .into_iter()
                .flat_map(move |side| services.clone().into_iter().map(move |service| (side, service)));
            pairs.collect::<Vec<_>>()
        };
        products.iter().flat_map(pairs).collect()
    }

    /// The fewest products by brute force: the shortest way from nothing to all pairs, a product at a time.
    fn fewest(pairs: &BTreeSet<(u8, u8)>) -> usize {
        let bit = |side: u8, service: u8| 1_u16 << (side * SIDES + service);
        let all = pairs
            .iter()
            .fold(0, |all, (side, service)| all | bit(*side, *service));
        let of = |mask: u8| (0..SIDES).filter(move |i| mask & (1 << i) != 0);
        let products =
            (1..1_u8 << SIDES).flat_map(|sides| (1..1_u8 << SIDES).map(move |services| (sides, services)));
        let products: Vec<u16> = products
            .map(|(sides, services)| {
                of(sides)
                    .flat_map(|side| of(services).map(move |service| bit(side, service)))
                    .fold(0, |a, b| a | b)
            })
            .filter(|product| product & !all == 0)
            .collect();
        let mut known = BTreeMap::from([(0_u16, 0)]);
        let mut next = VecDeque::from([0_u16]);
        while let Some(covered) = next.pop_front() {
            let count = known[&covered];
            if covered == all {
                return count;
            }
            for product in &products {
                let more = covered | product;
                known.entry(more).or_insert_with(|| {
                    next.push_back(more);
                    count + 1
                });
            }
        }
        unreachable!("every pair is a product")
    }

    proptest! {
        #[test]
        fn products_are_exact_fewest_and_without_anything_to_spare(
            pairs in proptest::collection::btree_set((0..SIDES, 0..SIDES), 0..16),
        ) {
            let products = cover(&pairs);
            prop_assert_eq!(&pairs_of(&products), &pairs);
            prop_assert_eq!(products.len(), fewest(&pairs), "{:?}", products);
            for i in 0..products.len() {
                let without = |change: &dyn Fn(&mut Product<u8, u8>)| {
                    let mut products = products.clone();
                    change(&mut products[i]);
                    pairs_of(&products)
                };
                for side in products[i].0.clone() {
                    prop_assert_ne!(&without(&|product| assert!(product.0.remove(&side))), &pairs);
                }
                for service in products[i].1.clone() {
                    prop_assert_ne!(&without(&|product| assert!(product.1.remove(&service))), &pairs);
                }
            }
        }
    }

    #[test]
    fn ends_share_rules_with_those_that_have_some_of_their_services() {
        let pairs = BTreeSet::from([("a", 80), ("b", 443), ("c", 80), ("c", 443)]);
        let products = cover(&pairs);
        let expected: [Product<&str, i32>; 2] = [
            (["a", "c"].into(), [80].into()),
            (["b", "c"].into(), [443].into()),
        ];
        assert_eq!(BTreeSet::from_iter(products), BTreeSet::from(expected));
    }

    /// Many ends that each have services of their own and all but one of the others': more than can be searched through.
    #[test]
    fn large_relations_are_covered_in_bounded_time() {
        let services = 0..60_u32;
        let pairs = services
            .clone()
            .flat_map(|side| services.clone().map(move |service| (side, service)));
        let pairs: BTreeSet<(u32, u32)> = pairs.filter(|(side, service)| side != service).collect();
        let begun = std::time::Instant::now();
        let products = cover(&pairs);
        assert!(products.len() <= 60, "{}", products.len());
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(100),
            "{:?}",
            begun.elapsed()
        );
        let covered = products.iter().flat_map(|(sides, services)| {
            sides
                .iter()
                .flat_map(move |side| services.iter().map(move |service| (*side, *service)))
        });
        assert_eq!(covered.collect::<BTreeSet<_>>(), pairs);
    }
}
