//! A limiter as its calls share it: a word for each bucket, and a lock for whatever a word cannot hold.
//!
//! A word is the moment at which its bucket will be full, and is changed by whoever comes, without a lock. Its first bit
//! says that it may only be changed under the lock: because somebody waits for this bucket, because a quota is being
//! changed, or because the limiter keeps its buckets in another form, with more than 63 bits or for several quotas.

use std::{collections::HashMap, hash::RandomState, sync::Arc, task::Waker, time::Duration};

use buttress_core::{
    BoxError, LimitReport, Policies, Rejected, ServiceLimit,
    clock::{self, Instant},
    sync::{AtomicU64, Mutex, Ordering, lock, wake},
};

use crate::{
    Event, Quota, Reason,
    bucket::{Buckets, Denial, Terms, are_full},
    gcra::{Denied, Rate},
    grant::Grant,
    line::Line,
    settings::{Settings, policies},
    table::Table,
};

/// The bit of a word that says to ask under the lock.
const ASK: u64 = 1 << 63;

/// The tag of all who share one bucket.
pub(crate) const SHARED: u64 = 0;

#[derive(Debug)]
pub(crate) struct Limiter {
    /// A nanosecond before it was made: every moment is later than a word that nobody has changed.
    start: Instant,
    table: Table,
    pace: Pace,
    policies: Policies,
    /// Is it 1, a quota has been changed: then these policies are out of date, and those behind the lock count.
    changed: AtomicU64,
    pub(crate) hasher: RandomState,
    pub(crate) settings: Settings,
    locked: Mutex<Locked>,
}

/// The rate of the words, changed only while all of them say to ask under the lock.
#[derive(Debug)]
struct Pace {
    scale: AtomicU64,
    token: AtomicU64,
    burst: AtomicU64,
    capacity: AtomicU64,
}

#[derive(Debug)]
struct Locked {
    terms: Vec<Terms>,
    policies: Policies,
    /// The buckets of every place, unless the words are them.
    wide: Vec<u128>,
    /// The terms of the first quota at every place, where each key says what its quota is.
    own: Vec<Terms>,
    /// Those who wait, by place.
    lines: HashMap<usize, Line>,
    last_ticket: u64,
    /// When everything will be paid back that was charged and was not there.
    owed_until: u64,
}

/// A call that asks for tokens.
pub(crate) struct Ask<'a> {
    pub(crate) tag: u64,
    pub(crate) cost: u64,
    /// The quota of the key, if it has its own.
    pub(crate) quota: Option<Quota>,
    pub(crate) key: &'a dyn Fn() -> Option<Arc<str>>,
    /// By when the call must have ended.
    pub(crate) due: &'a dyn Fn() -> Option<Instant>,
    /// Where a server says what is left. What a client allows itself is not the business of those whom it serves.
    pub(crate) report: &'a dyn Fn() -> Option<&'a LimitReport>,
}

/// What becomes of a call.
pub(crate) enum Asked {
    Granted,
    Waits(Grant),
    Refused(BoxError),
}

/// What is decided under the lock.
enum Decision {
    Granted,
    Waits,
    WouldWait(Duration),
    Denied(Denied),
}

/// Where a caller stands with one quota, which may be its own.
struct Standing {
    quota: usize,
    own: Option<Quota>,
    left: u64,
    reset: Duration,
}

impl Limiter {
    pub(crate) fn new(settings: Settings) -> Self {
        let quotas = settings.quotas.iter().enumerate();
        let terms = quotas.map(|(number, quota)| settings.terms(number, *quota));
        let terms: Vec<_> = terms.collect();
        let narrow = !settings.own_quotas && terms.len() == 1 && terms[0].rate.fits();
        let table = Table::new(settings.max_keys, if narrow { 0 } else { ASK });
        let places = table.shared() + 1;
        let policies = policies(terms.iter());
        Self {
            start: clock::now() - Duration::from_nanos(1),
            pace: Pace::new(&terms[0].rate),
            policies: policies.clone(),
            changed: AtomicU64::new(0),
            hasher: RandomState::new(),
            locked: Mutex::new(Locked {
                wide: vec![0; if narrow { 0 } else { places * terms.len() }],
                own: vec![terms[0]; if settings.own_quotas { places } else { 0 }],
                terms,
                policies,
                lines: HashMap::new(),
                last_ticket: 0,
                owed_until: 0,
            }),
            table,
            settings,
        }
    }

    /// Nanoseconds since it was made.
    fn nanos(&self, now: Instant) -> u64 {
        now.to_bits().saturating_sub(self.start.to_bits())
    }

    #[cfg(test)]
    pub(crate) fn step_clock_ahead(&mut self, by: Duration) {
        self.start = self.start - by;
    }

    /// The moment so many nanoseconds after it was made.
    pub(crate) fn moment(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }

    /// Takes tokens with a word alone, as most calls do. Returns when the bucket will be full then, or nothing if there is
    /// more to say.
    #[inline]
    pub(crate) fn pass(&self, tag: u64, cost: u64, since: Instant) -> Option<u64> {
        let place = self.find(tag)?;
        let word = self.table.word(place);
        let now = self.nanos(since);
        // Acquire, with the release of whoever has stored it under the lock: the rate and the tag that belong to it are
        // seen then too, or newer ones.
        let mut full = word.load(Ordering::Acquire);
        loop {
            // The place may have been given to another key since it was found.
            if tag != SHARED && !self.table.is_of(place, tag) {
                return None;
            }
            // If the rate is being changed, so is the word, and what is reckoned with it comes to nothing.
            let then = self.pace.take(full, now, cost)?;
            if cost == 0 {
                return Some(full);
            }
            // Acquire as above. No release: nothing belongs to the new word that did not belong to the old one.
            match word.compare_exchange_weak(full, then, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(then),
                Err(other) => full = other,
            }
        }
    }

    /// Asks for tokens that a word alone has not given. Whether they would have to be waited for too long is known at once.
    #[inline(never)]
    pub(crate) fn ask(self: &Arc<Self>, ask: &Ask<'_>, since: Instant) -> Asked {
        let now = self.nanos(since);
        if self.settings.max_wait.is_zero()
            && !self.settings.shadow
            && let Some((denied, full)) = self.denial(ask.tag, now, ask.cost)
        {
            let standing = match denied {
                // There is none, and this is when there will be one.
                Denied::For(reset) if ask.cost == 1 => Standing {
                    quota: 0,
                    own: None,
                    left: 0,
                    reset,
                },
                _ => Standing::by_word(&self.pace.load(), full, now),
            };
            return Asked::Refused(self.refuse(ask.cost, (ask.key)(), denied, &standing));
        }
        self.ask_in_turn(ask, since)
    }

    /// Why a word alone does not let a call through, and when the bucket will be full.
    fn denial(&self, tag: u64, now: u64, cost: u64) -> Option<(Denied, u64)> {
        let place = self.find(tag)?;
        let word = self.table.word(place);
        // Acquire as in `pass`.
        let full = word.load(Ordering::Acquire);
        if tag != SHARED && !self.table.is_of(place, tag) {
            return None;
        }
        if full & ASK != 0 {
            // Even what is too large is: the rate may be another one than that of the words.
            return None;
        }
        let denied = self.pace.denial(full, now, cost)?;
        // The rate was read before the word is read again: it belongs to it if that is the same.
        (word.load(Ordering::Acquire) == full).then_some((denied, full))
    }

    #[inline]
    fn find(&self, tag: u64) -> Option<usize> {
        match tag {
            SHARED => Some(self.table.shared()),
            tag => self.table.find(tag),
        }
    }

    /// Asks under the lock, behind those who wait.
    #[inline(never)]
    fn ask_in_turn(self: &Arc<Self>, ask: &Ask<'_>, since: Instant) -> Asked {
        let due = (ask.due)();
        let mut locked = lock(&self.locked);
        let (place, note) = self.place_for(&mut locked, ask.tag, self.nanos(since));
        let shares = place == self.table.shared();
        locked.last_ticket += 1;
        let ticket = locked.last_ticket;
        // Who has no quota of his own has that of the layer, which may have been changed.
        let own = (self.settings.own_quotas && !shares).then(|| match ask.quota {
            Some(quota) => self.settings.terms(0, quota),
            None => locked.terms[0],
        });
        let done = self.act(&mut locked, place, |buckets, line, now| {
            let left = due.map(|due| due.saturating_duration_since(self.moment(now)));
            let longest = left.unwrap_or(Duration::MAX).min(self.settings.max_wait);
            let mut woken = Vec::new();
            if let Some(own) = own
                && buckets.set_own(own, now)
            {
                woken = line.reckon(buckets, now);
            }
            woken.append(&mut line.advance(buckets, now));
            let (quota, decision) = self.decide(buckets, line, now, ask.cost, longest, ticket);
            let standing = Standing::of(buckets, quota, now);
            (decision, standing, woken)
        });
        drop(locked);
        let ((decision, standing, woken), more) = done;
        woken.into_iter().chain(more).for_each(wake);
        if let Some(note) = note {
            self.settings.events.emit(&note);
        }
        let cost = ask.cost;
        match decision {
            Decision::Waits => {
                let tag = if shares { SHARED } else { ask.tag };
                return Asked::Waits(Grant::new(self.clone(), tag, cost, ticket, since));
            }
            Decision::Denied(denied) => {
                let refused = self.refuse(ask.cost, (ask.key)(), denied, &standing);
                if !self.settings.shadow {
                    return Asked::Refused(refused);
                }
                // Nothing is taken that would not have been.
                self.admitted(0, || Duration::ZERO);
                return Asked::Granted;
            }
            Decision::WouldWait(wait) => {
                self.settings.events.emit(&Event::WouldWait { wait, cost });
            }
            Decision::Granted => {}
        }
        if self.settings.refuses
            && let Some(report) = (ask.report)()
        {
            report.add(self.limit(&standing));
        }
        self.admitted(cost, || Duration::ZERO);
        Asked::Granted
    }

    /// Joins the line of all for one token, however long that takes.
    pub(crate) fn join(self: &Arc<Self>) -> Grant {
        let since = clock::now();
        let mut locked = lock(&self.locked);
        locked.last_ticket += 1;
        let ticket = locked.last_ticket;
        let ((), woken) = self.act(&mut locked, self.table.shared(), |buckets, line, now| {
            // One token is in every burst.
            let wait = buckets.wait(now, line.cost(), 1);
            let wait = wait.map_or(Duration::ZERO, |(_, wait)| wait);
            line.join(ticket, 1, now, wait);
        });
        drop(locked);
        woken.into_iter().for_each(wake);
        Grant::new(self.clone(), SHARED, 1, ticket, since)
    }

    /// Decides what becomes of a call, and which quota it is that bounds it.
    fn decide(
        &self,
        buckets: &mut Buckets<'_>,
        line: &mut Line,
        now: u64,
        cost: u64,
        longest: Duration,
        ticket: u64,
    ) -> (usize, Decision) {
        match buckets.wait(now, line.cost(), cost) {
            Err(Denial { quota, denied }) => (quota, Decision::Denied(denied)),
            // A call that costs nothing looks whether there is something, and waits for nobody.
            Ok((_, wait)) if wait.is_zero() && (line.len() == 0 || cost == 0) => {
                buckets.charge(now, cost);
                (buckets.fewest(now), Decision::Granted)
            }
            Ok((quota, wait)) if wait > longest => (quota, Decision::Denied(Denied::For(wait))),
            Ok((quota, wait)) if self.settings.shadow => {
                buckets.charge(now, cost);
                (quota, Decision::WouldWait(wait))
            }
            Ok((quota, wait)) => {
                line.join(ticket, cost, now, wait);
                (quota, Decision::Waits)
            }
        }
    }

    /// The place of a tag, or a new one, or the shared one if there is none; and what there is to tell of that.
    fn place_for(&self, locked: &mut Locked, tag: u64, now: u64) -> (usize, Option<Event>) {
        if locked.wide.is_empty() && locked.narrow_units(now) >= ASK / 4 * 3 {
            self.widen(locked);
        }
        if tag == SHARED {
            return (self.table.shared(), None);
        }
        if let Some(place) = self.table.find(tag) {
            return (place, None);
        }
        let claimed = if locked.wide.is_empty() {
            // What is later than any word that is free: a word is never again what it was before.
            let now = locked.narrow_units(now);
            let is_free = |place| self.table.word(place).load(Ordering::Relaxed) < now;
            let seize = |place| {
                let word = self.table.word(place);
                let full = word.load(Ordering::Relaxed);
                if full >= now {
                    return false;
                }
                // Acquire, with whoever changed it last. The tag follows with release.
                let seized =
                    word.compare_exchange(full, now | ASK, Ordering::Acquire, Ordering::Relaxed);
                seized.is_ok()
            };
            let claimed = self.table.claim(tag, is_free, seize);
            if let Some((place, _)) = claimed {
                // It may have taken from what those share who find no place. Release, as whoever works on a place does.
                let shared = self.table.word(self.table.shared());
                let full = (shared.load(Ordering::Acquire) & !ASK).max(now);
                self.table.word(place).store(full | ASK, Ordering::Release);
            }
            claimed
        } else {
            let is_free = |place| !locked.lines.contains_key(&place) && locked.is_full(place, now);
            let claimed = self.table.claim(tag, is_free, |_| true);
            if let Some((place, _)) = claimed {
                locked.begin(place, self.table.shared());
            }
            claimed
        };
        match claimed {
            Some((place, false)) => (place, None),
            Some((place, true)) => (place, Some(Event::Evicted)),
            None => (self.table.shared(), Some(Event::Overflow)),
        }
    }

    /// Works on the buckets of one place and on those who wait for them, and lets those through whose turn has come by that.
    /// Returns whom to wake.
    fn act<T>(
        &self,
        locked: &mut Locked,
        place: usize,
        act: impl FnOnce(&mut Buckets<'_>, &mut Line, u64) -> T,
    ) -> (T, Vec<Waker>) {
        let Locked {
            terms,
            wide,
            own,
            lines,
            ..
        } = locked;
        let word = self.table.word(place);
        let narrow = wide.is_empty();
        let mut one = [0];
        let full = if narrow {
            // From here on nobody else changes it. Acquire, to see what those have seen who changed it last.
            one[0] = (word.fetch_or(ASK, Ordering::Acquire) & !ASK).into();
            &mut one
        } else {
            &mut wide[place * terms.len()..][..terms.len()]
        };
        let mut line = if lines.is_empty() {
            Line::default()
        } else {
            lines.remove(&place).unwrap_or_default()
        };
        let mut buckets = Buckets::new(terms, own.get(place).copied(), full, locked.owed_until);
        // Not before nobody else changes the buckets: a moment from before they were changed would look like a clock that has
        // stepped back, and have what was taken since forgotten.
        let now = self.nanos(clock::now());
        buckets.keep_within(now);
        let done = act(&mut buckets, &mut line, now);
        let woken = line.advance(&mut buckets, now);
        locked.owed_until = buckets.owed_until();
        if let (Some(own), Some(new)) = (own.get_mut(place), buckets.own()) {
            *own = new;
        }
        if narrow {
            let ask = if line.is_deserted() { 0 } else { ASK };
            let full = u64::try_from(one[0]).map_or(ASK - 1, |full| full.min(ASK - 1));
            // Release: whoever reads it sees what was changed under the lock before.
            word.store(full | ask, Ordering::Release);
        }
        if !line.is_deserted() {
            lines.insert(place, line);
        }
        (done, woken)
    }

    /// Works on the buckets and the line of a tag, if it has any; it has all its tokens if it has none.
    pub(crate) fn step<T>(
        &self,
        tag: u64,
        act: impl FnOnce(&mut Buckets<'_>, &mut Line, u64) -> T,
    ) -> Option<T> {
        let mut locked = lock(&self.locked);
        let place = self.find(tag)?;
        let done = self.act(&mut locked, place, act);
        drop(locked);
        done.1.into_iter().for_each(wake);
        Some(done.0)
    }

    fn refuse(
        &self,
        cost: u64,
        key: Option<Arc<str>>,
        denied: Denied,
        standing: &Standing,
    ) -> BoxError {
        let (reason, retry_after) = match denied {
            Denied::For(wait) => (Reason::Exceeded, Some(wait)),
            Denied::Forever => (Reason::TooLarge, None),
        };
        if !self.settings.events.is_empty() {
            self.settings.events.emit(&Event::Refused {
                reason,
                quota: standing.quota,
                cost,
                retry_after,
                key: key.clone(),
                shadow: self.settings.shadow,
            });
        }
        let mut rejected = Rejected::new("rate limit", reason.text()).over(self.limit(standing));
        if let Some(name) = &self.settings.name {
            rejected = rejected.named(name.clone());
        }
        if let Some(key) = key {
            rejected = rejected.keyed(key);
        }
        if let Some(retry_after) = retry_after {
            rejected = rejected.after(retry_after);
        }
        rejected.into()
    }

    /// Reports how a caller stands who was let through by a word alone, which says `full` now.
    pub(crate) fn report_of_word(&self, report: &LimitReport, full: u64, since: Instant) {
        let standing = Standing::by_word(&self.pace.load(), full, self.nanos(since));
        report.add(self.limit(&standing));
    }

    /// Refuses a call that has waited and costs more than a burst holds, since a quota was changed meanwhile.
    pub(crate) fn turn_away(&self, tag: u64, cost: u64) -> BoxError {
        let standing = self.step(tag, |buckets, _, now| {
            let denied = buckets.wait(now, 0, cost).map_err(|denial| denial.quota);
            let quota = denied.err().unwrap_or_else(|| buckets.fewest(now));
            Standing::of(buckets, quota, now)
        });
        let standing = standing.unwrap_or(Standing {
            quota: 0,
            own: None,
            left: 0,
            reset: Duration::ZERO,
        });
        self.refuse(cost, None, Denied::Forever, &standing)
    }

    pub(crate) fn admitted(&self, cost: u64, waited: impl FnOnce() -> Duration) {
        if !self.settings.events.is_empty() {
            let waited = waited();
            self.settings.events.emit(&Event::Admitted { waited, cost });
        }
    }

    /// Says how the holder of a tag stands.
    pub(crate) fn report_to(&self, report: &LimitReport, tag: u64) {
        let standing = self.step(tag, |buckets, _, now| {
            Standing::of(buckets, buckets.fewest(now), now)
        });
        if let Some(standing) = standing {
            report.add(self.limit(&standing));
        }
    }

    fn limit(&self, standing: &Standing) -> ServiceLimit {
        let mut policies = if self.changed.load(Ordering::Acquire) == 0 {
            self.policies.clone()
        } else {
            lock(&self.locked).policies.clone()
        };
        if let Some(own) = &standing.own {
            let mut list = policies.to_vec();
            list[0] = own.policy();
            policies = list.into_iter().collect();
        }
        ServiceLimit {
            policies,
            bound: standing.quota,
            remaining: standing.left,
            reset: standing.reset,
        }
    }

    pub(crate) fn quota(&self, number: usize) -> Option<Quota> {
        let locked = lock(&self.locked);
        locked.terms.get(number).map(|terms| terms.quota)
    }

    pub(crate) fn set_quota(&self, number: usize, quota: Quota) -> bool {
        let new = self.settings.terms(number, quota);
        let mut locked = lock(&self.locked);
        let now = self.nanos(clock::now());
        let Some(old) = locked.terms.get(number).copied() else {
            return false;
        };
        let (shared, count) = (self.table.shared(), locked.terms.len());
        if locked.wide.is_empty() {
            if new.rate.fits() {
                self.turn_words(&old.rate, &new.rate, now);
                self.pace.store(&new.rate);
            } else {
                self.widen(&mut locked);
            }
        }
        // A key that says what its quota is goes on with that.
        let all = locked.own.is_empty() || number > 0;
        for (place, full) in locked.wide.chunks_mut(count).enumerate() {
            if all || place == shared {
                full[number] = new.rate.take_over(&old.rate, full[number], now);
            }
        }
        if number == 0
            && let Some(own) = locked.own.get_mut(shared)
        {
            *own = new;
        }
        locked.terms[number] = new;
        locked.policies = policies(locked.terms.iter());
        self.changed.store(1, Ordering::Release);
        let waiting = locked.lines.keys().copied().collect();
        let places: Vec<_> = if locked.wide.is_empty() {
            (0..=shared).collect()
        } else {
            waiting
        };
        let mut woken = Vec::new();
        for place in places {
            let (mut them, mut more) = self.act(&mut locked, place, |buckets, line, now| {
                line.reckon(buckets, now)
            });
            woken.append(&mut them);
            woken.append(&mut more);
        }
        drop(locked);
        woken.into_iter().for_each(wake);
        true
    }

    /// Takes all words over from one rate to another, and leaves them such that they ask.
    fn turn_words(&self, old: &Rate, new: &Rate, now: u64) {
        for place in 0..=self.table.shared() {
            let word = self.table.word(place);
            let full = word.fetch_or(ASK, Ordering::Acquire) & !ASK;
            let turned = new.take_over(old, full.into(), now);
            let turned = u64::try_from(turned).map_or(ASK - 2, |it| it.min(ASK - 2));
            // If it means something else now it must be another one, so that nobody takes it for the old one, whose rate he
            // knows. Nobody gets more by that, and a token comes a nanosecond later.
            let same = (old.scale, old.token) == (new.scale, new.token);
            let turned = turned + u64::from(turned == full && !same);
            word.store(turned | ASK, Ordering::Release);
        }
    }

    /// Keeps the buckets in another form than the words, for good.
    fn widen(&self, locked: &mut Locked) {
        let places = 0..=self.table.shared();
        // Acquire, to see what those have seen who changed it last.
        let words = places.map(|place| self.table.word(place).fetch_or(ASK, Ordering::Acquire));
        locked.wide = words.map(|word| (word & !ASK).into()).collect();
    }

    /// Puts right what a call was charged that has turned out to cost something else.
    pub(crate) fn settle(&self, tag: u64, reserved: u64, used: u64) {
        if used == reserved {
            return;
        }
        let mut locked = lock(&self.locked);
        let now = self.nanos(clock::now());
        let (place, note) = self.place_for(&mut locked, tag, now);
        let ((), woken) = self.act(&mut locked, place, |buckets, _, now| {
            if let Some(more) = used.checked_sub(reserved) {
                buckets.charge(now, more);
            } else {
                buckets.give_back(now, reserved - used);
            }
        });
        drop(locked);
        woken.into_iter().for_each(wake);
        if let Some(note) = note {
            self.settings.events.emit(&note);
        }
    }

    /// The tokens that are there for a tag, how long until there is one, and how many wait.
    pub(crate) fn look(&self, tag: u64) -> (u64, Duration, usize) {
        let look = |buckets: &mut Buckets<'_>, line: &mut Line, now| {
            let wait = buckets.wait(now, line.cost(), 1);
            let wait = wait.map_or(Duration::ZERO, |(_, wait)| wait);
            let (left, _) = buckets.standing(buckets.fewest(now), now);
            (left, wait, line.len())
        };
        self.step(tag, look).unwrap_or_else(|| {
            let terms = lock(&self.locked).terms.clone();
            let mut full = vec![0; terms.len()];
            let mut buckets = Buckets::new(&terms, None, &mut full, 0);
            look(&mut buckets, &mut Line::default(), 1)
        })
    }

    /// The keys whose buckets are not full.
    pub(crate) fn keys(&self) -> usize {
        let locked = lock(&self.locked);
        let now = self.nanos(clock::now());
        let places = 0..self.table.shared();
        if locked.wide.is_empty() {
            let now = locked.narrow_units(now);
            places
                .filter(|place| self.table.word(*place).load(Ordering::Relaxed) > now)
                .count()
        } else {
            places.filter(|place| !locked.is_full(*place, now)).count()
        }
    }
}

impl Locked {
    /// A moment as it is in a word.
    fn narrow_units(&self, now: u64) -> u64 {
        u64::try_from(self.terms[0].rate.units(now)).map_or(ASK - 1, |units| units.min(ASK - 1))
    }

    /// Are all buckets of a place full, where they are kept in the other form than words?
    fn is_full(&self, place: usize, now: u64) -> bool {
        let full = &self.wide[place * self.terms.len()..][..self.terms.len()];
        are_full(self.own.get(place), &self.terms, full, now)
    }

    /// Begins a place of a key, which may have taken from what those share who find none.
    fn begin(&mut self, place: usize, shared: usize) {
        let count = self.terms.len();
        self.wide
            .copy_within(shared * count..(shared + 1) * count, place * count);
        if let Some(own) = self.own.get_mut(place) {
            *own = self.terms[0];
        }
    }
}

impl Pace {
    fn new(rate: &Rate) -> Self {
        let pace = Self {
            scale: AtomicU64::new(0),
            token: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
        };
        pace.store(rate);
        pace
    }

    /// Stores a rate that [fits](Rate::fits); of another one nothing is ever read.
    fn store(&self, rate: &Rate) {
        let narrow = |units| u64::try_from(units).unwrap_or(u64::MAX);
        // Release, with the acquire of `load`: whoever reads any of them sees that the words say to ask.
        self.scale.store(rate.scale, Ordering::Release);
        self.token.store(narrow(rate.token), Ordering::Release);
        self.burst.store(rate.burst, Ordering::Release);
        self.capacity
            .store(narrow(rate.capacity), Ordering::Release);
    }

    /// As [`Rate::take`], for a word and the time in nanoseconds; nothing too if the word says to ask.
    #[inline]
    fn take(&self, full: u64, now: u64, cost: u64) -> Option<u64> {
        let (then, most) = self.reckon(full, now, cost)?;
        (then <= most && then < ASK).then_some(then)
    }

    /// Why nothing is taken. Nothing if something is, or the word says to ask; if it owes more than it holds, or the clock has
    /// stepped back, that is nothing for a word either.
    fn denial(&self, full: u64, now: u64, cost: u64) -> Option<Denied> {
        if cost > self.burst.load(Ordering::Acquire) {
            return Some(Denied::Forever);
        }
        let (then, most) = self.reckon(full, now, cost)?;
        let units = then.checked_sub(most).filter(|_| full <= most)?;
        let nanos = units.div_ceil(self.scale.load(Ordering::Acquire));
        (nanos > 0).then(|| Denied::For(Duration::from_nanos(nanos)))
    }

    /// When a bucket would be full after this, and when it may be at most.
    #[inline]
    fn reckon(&self, full: u64, now: u64, cost: u64) -> Option<(u64, u64)> {
        let now = now.checked_mul(self.scale.load(Ordering::Acquire))?;
        let time = cost.checked_mul(self.token.load(Ordering::Acquire))?;
        let then = full.max(now).checked_add(time)?;
        let most = now.checked_add(self.capacity.load(Ordering::Acquire))?;
        Some((then, most))
    }

    fn load(&self) -> Rate {
        Rate {
            scale: self.scale.load(Ordering::Acquire),
            token: self.token.load(Ordering::Acquire).into(),
            burst: self.burst.load(Ordering::Acquire),
            capacity: self.capacity.load(Ordering::Acquire).into(),
        }
    }
}

impl Standing {
    fn by_word(rate: &Rate, full: u64, now: u64) -> Self {
        let (full, now) = (full.into(), rate.units(now));
        Self {
            quota: 0,
            own: None,
            left: rate.left(full, now),
            reset: rate.next(full, now),
        }
    }

    fn of(buckets: &Buckets<'_>, quota: usize, now: u64) -> Self {
        let (left, reset) = buckets.standing(quota, now);
        Self {
            quota,
            own: buckets.own().map(|own| own.quota),
            left,
            reset,
        }
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limiter(quotas: &[Quota]) -> Arc<Limiter> {
        Arc::new(Limiter::new(Settings {
            quotas: quotas.to_vec(),
            max_wait: Duration::ZERO,
            refuses: true,
            ..Settings::new(quotas[0])
        }))
    }

    fn per_second(tokens: u32, burst: u32) -> Quota {
        let count = |count: u32| NonZeroU32::new(count).unwrap();
        Quota::per_second(count(tokens)).burst(count(burst))
    }

    /// Asks for one token; how long it has to be waited for, if it has.
    fn wait(limiter: &Arc<Limiter>) -> Option<Duration> {
        let since = clock::now();
        let passed = limiter.pass(SHARED, 1, since);
        let ask = Ask {
            tag: SHARED,
            cost: 1,
            quota: None,
            key: &|| None,
            due: &|| None,
            report: &|| None,
        };
        match passed.map_or_else(|| limiter.ask(&ask, since), |_| Asked::Granted) {
            Asked::Granted => None,
            Asked::Waits(_) => panic!("nobody waits"),
            Asked::Refused(error) => Rejected::find(&*error).unwrap().retry_after(),
        }
    }

    // promises: RL-4, RL-23
    #[tokio::test(start_paused = true)]
    async fn a_report_amid_a_change_of_the_quota_does_not_panic() {
        let limiter = limiter(&[per_second(10, 5)]);
        let since = clock::now();
        let full = limiter.pass(SHARED, 1, since).unwrap();
        // The token is the new quota's already, and the capacity the old one's still.
        let days = Rate::new(Quota::per_day(NonZeroU32::MIN), Duration::ZERO);
        let token = u64::try_from(days.token).unwrap();
        limiter.pace.token.store(token, Ordering::Release);
        let report = LimitReport::default();
        limiter.report_of_word(&report, full, since);
        assert_eq!(report.take().len(), 1);
    }

    // promise: RL-5
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_steps_back_gives_nothing_and_has_nobody_wait_for_longer_than_a_bucket_takes()
     {
        let any = Quota::per_second(NonZeroU32::MAX);
        // In a word, under the lock, and for two quotas.
        for quotas in [
            &[per_second(10, 5)][..],
            &[per_second(997, 500)],
            &[any, per_second(10, 5)],
        ] {
            let mut limiter = limiter(quotas);
            let step = |limiter: &mut Arc<Limiter>, by| {
                Arc::get_mut(limiter).unwrap().step_clock_ahead(by);
            };
            step(&mut limiter, Duration::from_hours(2));
            while wait(&limiter).is_none() {}
            let before = wait(&limiter).unwrap();

            let limit = Arc::get_mut(&mut limiter).unwrap();
            limit.start = limit.start + Duration::from_hours(1);
            let (left, ..) = limiter.look(SHARED);
            assert_eq!(left, 0, "the step gives nothing");
            let back = wait(&limiter).expect("the step gives nothing");
            // It was empty before, so that it waits as it did.
            assert!(back <= before, "{back:?}, and {before:?} before");
            step(&mut limiter, back);
            assert_eq!(wait(&limiter), None, "it goes on from there");
        }
    }

    // promises: RL-5, RL-22
    #[tokio::test(start_paused = true)]
    async fn what_is_owed_is_no_step_of_the_clock() {
        for quotas in [&[per_second(10, 5)][..], &[per_second(997, 5)]] {
            let mut limiter = limiter(quotas);
            limiter.settle(SHARED, 0, 1_000_000);
            let owed = wait(&limiter).unwrap();
            assert!(owed > Duration::from_mins(15), "{owed:?}");
            Arc::get_mut(&mut limiter)
                .unwrap()
                .step_clock_ahead(Duration::from_mins(10));
            assert_eq!(
                wait(&limiter),
                Some(owed.saturating_sub(Duration::from_mins(10)))
            );
        }
    }

    // promise: RL-4
    #[tokio::test(start_paused = true)]
    async fn a_word_that_has_run_out_of_moments_is_kept_in_another_form() {
        for years in [9, 17, 18, 19, 40, 400] {
            // 16 units a nanosecond: 18 years in 63 bits.
            let sixteenth =
                Quota::per(NonZeroU32::new(16).unwrap(), Duration::from_nanos(999)).unwrap();
            let limiter = limiter(&[sixteenth.burst(NonZeroU32::new(7).unwrap())]);
            assert_eq!(wait(&limiter), None);
            tokio::time::advance(Duration::from_hours(24 * 365 * years)).await;
            for _ in 0..7 {
                assert_eq!(wait(&limiter), None, "after {years} years");
            }
            let next = wait(&limiter).expect("seven is all");
            assert_eq!(next, Duration::from_nanos(63), "after {years} years");
            tokio::time::advance(next).await;
            let then = (wait(&limiter), wait(&limiter).is_some());
            assert_eq!(then, (None, true), "after {years} years");
        }
    }
}
