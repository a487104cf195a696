//! Profiles that were compiled, found by what they say.

use std::{collections::HashMap, sync::Arc};

use crate::{CompileError, Compiled, Profile};

/// Profiles that are kept; a pod has one or two, and whoever has more compiles again.
const CAPACITY: usize = 16;

/// Compiles each profile once. Profiles are told apart by all that they say, so that no two share a filter by chance.
#[derive(Debug, Default)]
pub struct Cache {
    compiled: HashMap<Profile, Arc<Compiled>>,
}

impl Cache {
    /// The profile, ready to be applied.
    ///
    /// # Errors
    ///
    /// Those of [`Profile::compile`]; they are not kept.
    pub fn compile(&mut self, profile: &Profile) -> Result<Arc<Compiled>, CompileError> {
        if let Some(known) = self.compiled.get(profile) {
            return Ok(Arc::clone(known));
        }
        let compiled = Arc::new(profile.compile()?);
        if self.compiled.len() >= CAPACITY {
            self.compiled.clear();
        }
        self.compiled.insert(profile.clone(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tcp, TcpPorts};

    #[test]
    fn what_says_the_same_is_compiled_once_and_nothing_else_is_shared() {
        let mut cache = Cache::default();
        let baseline = cache.compile(&Profile::baseline()).expect("compiles");
        let again = cache.compile(&Profile::baseline()).expect("compiles");
        assert!(Arc::ptr_eq(&baseline, &again));
        let limited = Profile {
            tcp: Tcp::Ports(TcpPorts::default()),
            ..Profile::baseline()
        };
        let limited = cache.compile(&limited).expect("compiles");
        assert!(!Arc::ptr_eq(&baseline, &limited));
    }

    #[test]
    fn no_more_than_a_few_are_kept() {
        let mut cache = Cache::default();
        for minimum_landlock in 0..100 {
            let profile = Profile {
                minimum_landlock,
                ..Profile::baseline()
            };
            cache.compile(&profile).expect("compiles");
            assert!(cache.compiled.len() <= CAPACITY);
        }
    }
}
