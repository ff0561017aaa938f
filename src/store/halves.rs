//! Many small reads by two threads.

use std::thread::{Builder, scope};

/// From so many items on a second thread is worth its start.
const MANY: usize = 100;

/// `each` of the items, in their order. Of many, the second half is done by another thread, where the kernel gives one;
/// it has ended when this returns.
pub fn in_halves<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let all = |items: &[T]| items.iter().map(&each).collect::<Vec<R>>();
    if items.len() < MANY {
        return all(items);
    }
    let (mine, others) = items.split_at(items.len() / 2);
    scope(|scope| {
        let helper = Builder::new().spawn_scoped(scope, || all(others));
        let mut done = all(mine);
        done.extend(match helper {
            Ok(helper) => helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => all(others),
        });
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_stays() {
        for count in [0, 1, MANY - 1, MANY, 3 * MANY + 1] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(in_halves(&items, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
