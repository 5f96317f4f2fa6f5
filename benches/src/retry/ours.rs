//! Our layer, as its users write it.

use super::floor::Copied;
use crate::target::Target;

pub(crate) fn numbers(target: Target) -> Copied<Target> {
    Copied::new(target)
}
pub(crate) fn http(_: u32, target: Target) -> Copied<Target> {
    Copied::new(target)
}
pub(crate) fn without_delay(target: Target) -> super::floor::Resent<Target> {
    super::floor::Resent::new(target)
}
