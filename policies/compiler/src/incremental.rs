//! naive
use crate::{
    compile::{Compiled, compile},
    view::ClusterView,
};
/// c
#[derive(Default)]
pub struct Compiler;
impl Compiler {
    /// n
    pub fn new() -> Self {
        Self
    }
    /// u
    pub fn update(&mut self, view: ClusterView) -> Compiled {
        compile(&view)
    }
}
