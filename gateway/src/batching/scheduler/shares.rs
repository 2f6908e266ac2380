//! Shares: what each tenant has had of the worker beside the others, and what it may have next.
//!
//! Every tenant has a counter of *virtual tokens* (Sheng et al., "Fairness in Serving Large
//! Language Models", OSDI 2024): each token of a prompt that is computed for it counts one, each
//! row of a decode as many as could be read in the time that it takes, all divided by the tenant's
//! weight. Whoever has had less goes first. A tenant that comes back after a while begins where the
//! least served of the others is: nobody saves up while nothing is asked for.
//!
//! A sequence in the batch cannot be served more than once in a step, so counters alone would let a
//! tenant with many sequences slow the steps of all others as much as it likes. Hence *quotas*: a
//! tenant that is far ahead has as many rows for sure as the one that wants the fewest, by weight
//! and at least one; others a few times as many. More than that is *surplus*, which it gets as far
//! as it costs the others little.
//!
//! Classes come before shares. All below the best class at work is surplus.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::live::Live;
use crate::batching::sequence::{Allowance, Priority, SequenceId, TenantId};

/// Virtual tokens by which a tenant may be ahead of the least served one, before what it wants
/// read is surplus: a long prompt now and then is nobody's flood.
const AHEAD: f64 = 4096.0;

/// A tenant that used what was left over is not to pay for it for long: it is never counted as
/// further ahead than this.
const MOST_AHEAD: f64 = 2.0 * AHEAD;

/// How many times its quota a tenant may have that is not so far ahead: who asks a few times at once
/// now and then floods nobody.
const BURST: usize = 4;

/// Up to so many virtual tokens ahead, others' streams are slowed so that its prompts are read soon.
const HURRY: f64 = 1024.0;

/// By so many virtual tokens a tenant may be further ahead than another one before what is being
/// read for it is put aside for that: two short prompts are not to be read in turns.
const QUANTUM: u64 = 256;

/// Plans after which what a tenant wanted at once is mostly forgotten. Between the end of one
/// request and the next one of the same client, it has not stopped to want.
const MEMORY: f64 = 256.0;

/// Plans for which a tenant still counts as at work when it has nothing to do any more: its clients
/// may be about to send the next request.
const PRESENCE: u32 = 16;

/// Plans for which others are still expected when one has everything to itself: what it is given then is not
/// to be long in the way of whoever comes next.
const COMPANY: u32 = 4096;

/// Sequences of better classes that may start before one of a worse class that waits.
const AGING: u32 = 8;

/// Whose sequences these are, and of which class: they go first in, first out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Party {
    pub(super) priority: Priority,
    pub(super) tenant: TenantId,
}

/// Sequences that wait, of each party.
pub(super) type Queues = BTreeMap<Party, BTreeSet<SequenceId>>;

/// Whether a sequence of this class waits.
fn has_any(queues: &Queues, priority: Priority) -> bool {
    let tenant = TenantId::ANYONE; // the smallest
    let first = queues.range(Party { priority, tenant }..).next();
    first.is_some_and(|(party, _)| party.priority == priority)
}

/// Whose turn it is: the smaller one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// It is not suspected of a worker's death: one that is ran before, and is to be cleared.
    innocent: bool,
    /// Its class has not waited for too long.
    pub(super) patient: bool,
    priority: Priority,
    /// See [`Shares::rank`].
    ahead: u64,
    pub(super) id: SequenceId,
}

/// One tenant beside the others.
#[derive(Debug)]
pub(super) struct Tenant {
    allowance: Allowance,
    /// Virtual tokens that it has had.
    served: f64,
    /// Sequences that run or wait, by class.
    live: [usize; 3],
    /// Those of them that run.
    running: [usize; 3],
    /// The best class that it has sequences of, or had.
    best: Priority,
    /// Plans since it had any.
    idle: u32,
    /// Sequences of the best class that it had at once of late.
    demand: f64,
}

impl Tenant {
    /// Whether it is at work, or was just now.
    fn is_present(&self) -> bool {
        self.idle < PRESENCE
    }

    /// Whether it is at work with sequences of this class, the best one of all.
    fn is_one_of(&self, best: Priority) -> bool {
        self.is_present() && self.best == best
    }
}

/// All tenants with sequences that run or wait, and those that are ahead.
#[derive(Debug)]
pub(super) struct Shares {
    tenants: HashMap<TenantId, Tenant>,
    /// What the least served tenant at work has had.
    floor: f64,
    /// Parties at work.
    parties: usize,
    /// Plans since there were several; [`COMPANY`] if there never were.
    alone: u32,
    /// Weight of all tenants at work.
    weight: f64,
    /// Sequences that run, by class.
    running: [usize; 3],
    /// The best class at work.
    best: Priority,
    /// Rows that are sure, by weight.
    level: f64,
    /// Sequences that started since one of each class did, while some of it waited.
    passed: [u32; 3],
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            floor: 0.0,
            parties: 0,
            alone: COMPANY,
            weight: 0.0,
            running: [0; 3],
            best: Priority::Low,
            level: 1.0,
            passed: [0; 3],
        }
    }
}

// === Counting ===

impl Shares {
    /// What a tenant may have from here on.
    pub(super) fn allow(&mut self, tenant: TenantId, allowance: Allowance) {
        self.meet(tenant, allowance).allowance = allowance;
    }

    /// The same, if nothing is known of it.
    pub(super) fn meet(&mut self, tenant: TenantId, allowance: Allowance) -> &mut Tenant {
        let served = self.floor;
        self.tenants.entry(tenant).or_insert_with(|| Tenant {
            allowance,
            served,
            live: [0; 3],
            running: [0; 3],
            best: Priority::Low,
            idle: PRESENCE,
            demand: 0.0,
        })
    }

    /// Counts who is at work before a step is planned.
    pub(super) fn count<'a>(&mut self, running: impl Iterator<Item = &'a Live>, queues: &Queues) {
        self.running = [0; 3];
        for class in Priority::ALL {
            if !has_any(queues, class) {
                self.passed[class as usize] = 0;
            }
        }
        for tenant in self.tenants.values_mut() {
            tenant.live = [0; 3];
            tenant.running = [0; 3];
        }
        for party in running.map(Live::party) {
            if let Some(tenant) = self.tenants.get_mut(&party.tenant) {
                let class = party.priority as usize;
                self.running[class] += 1;
                tenant.live[class] += 1;
                tenant.running[class] += 1;
            }
        }
        for (party, queue) in queues {
            if let Some(tenant) = self.tenants.get_mut(&party.tenant) {
                tenant.live[party.priority as usize] += queue.len();
            }
        }
        self.measure();
    }

    fn measure(&mut self) {
        (self.parties, self.weight, self.best) = (0, 0.0, Priority::Low);
        for tenant in self.tenants.values_mut() {
            let classes = Priority::ALL.into_iter();
            let mut at_work = classes.filter(|&class| tenant.live[class as usize] > 0);
            match at_work.next() {
                Some(best) => (tenant.best, tenant.idle) = (best, 0),
                None => tenant.idle = tenant.idle.saturating_add(1),
            }
            if tenant.is_present() {
                self.parties += 1 + at_work.count();
                self.weight += tenant.allowance.weight;
                self.best = self.best.min(tenant.best);
            }
        }
        self.alone = match self.parties {
            0 | 1 => self.alone.saturating_add(1),
            _ => 0,
        };
        let best = self.best;
        for tenant in self.tenants.values_mut() {
            // Whoever comes back begins where the others are.
            if tenant.is_one_of(best) && tenant.demand == 0.0 {
                tenant.served = tenant.served.max(self.floor);
            }
        }
        let equals = self
            .tenants
            .values()
            .filter(|tenant| tenant.is_one_of(best));
        let floor = equals.map(|tenant| tenant.served).reduce(f64::min);
        self.floor = self.floor.max(floor.unwrap_or(self.floor));
        self.level = f64::INFINITY;
        let (floor, most) = (self.floor, self.floor + MOST_AHEAD);
        self.tenants.retain(|_, tenant| {
            if tenant.is_one_of(best) {
                let wants = tenant.live[best as usize] as f64;
                tenant.demand = match wants > tenant.demand {
                    true => wants,
                    false => tenant.demand + (wants - tenant.demand) / MEMORY,
                };
                self.level = self.level.min(tenant.demand / tenant.allowance.weight);
            } else {
                tenant.demand = 0.0;
                tenant.served = tenant.served.max(floor - MOST_AHEAD);
            }
            tenant.served = tenant.served.min(most);
            tenant.is_present() || tenant.served > floor
        });
    }

    /// A sequence of this party starts.
    pub(super) fn start(&mut self, party: Party, queues: &Queues) {
        self.running[party.priority as usize] += 1;
        if let Some(tenant) = self.tenants.get_mut(&party.tenant) {
            tenant.running[party.priority as usize] += 1;
        }
        self.passed[party.priority as usize] = 0;
        for class in Priority::ALL {
            if class > party.priority && has_any(queues, class) {
                self.passed[class as usize] += 1;
            }
        }
    }

    /// A tenant is served virtual tokens.
    pub(super) fn charge(&mut self, tenant: TenantId, tokens: f64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.served += tokens / tenant.allowance.weight;
        }
    }
}

// === Whose turn it is, and for how much ===

impl Shares {
    /// Whether all that runs or waits is of one party, which has everything then.
    pub(super) fn is_alone(&self) -> bool {
        self.parties <= 1
    }

    /// Whether one has everything to itself that had not a while ago.
    pub(super) fn expects_company(&self) -> bool {
        self.is_alone() && self.alone < COMPANY
    }

    /// Whose turn it is to be read: of a sequence that waits to be.
    pub(super) fn turn(&self, id: SequenceId, live: &Live) -> Turn {
        let party = live.party();
        Turn {
            innocent: !live.is_suspect(),
            patient: self.passed[party.priority as usize] < AGING,
            priority: party.priority,
            ahead: self.rank(party.tenant),
            id,
        }
    }

    /// The same of one that is being read, and is not to be put aside for little.
    pub(super) fn turn_to_go_on(&self, id: SequenceId, live: &Live) -> Turn {
        let turn = self.turn(id, live);
        Turn {
            patient: true,
            ahead: turn.ahead.saturating_sub(QUANTUM),
            ..turn
        }
    }

    fn ahead(&self, tenant: TenantId) -> f64 {
        let tenant = self.tenants.get(&tenant);
        tenant.map_or(0.0, |tenant| tenant.served - self.floor)
    }

    /// The order of tenants by what they have had. Those of worse classes are behind.
    pub(super) fn rank(&self, tenant: TenantId) -> u64 {
        // Saturates.
        (self.ahead(tenant) + MOST_AHEAD) as u64
    }

    /// Whether whatever this party is given is surplus.
    pub(super) fn is_surplus(&self, party: Party) -> bool {
        !self.is_alone() && (party.priority > self.best || self.ahead(party.tenant) > AHEAD)
    }

    /// Tokens of a party's prompts that are worth hurrying for.
    pub(super) fn hurry(&self, party: Party) -> u64 {
        match (self.is_alone(), party.priority > self.best) {
            (true, _) => u64::MAX,
            (false, true) => 0,
            // Saturates.
            (false, false) => (HURRY - self.ahead(party.tenant)) as u64,
        }
    }

    /// Rows that a party has for sure in every step.
    pub(super) fn quota(&self, party: Party) -> usize {
        if self.is_alone() {
            return usize::MAX;
        }
        if party.priority > self.best {
            return 0;
        }
        let weight = self.allowance(party.tenant).weight;
        // Saturates.
        let equal = ((weight * self.level) as usize).max(1);
        match self.ahead(party.tenant) > AHEAD {
            true => equal,
            false => equal.saturating_mul(BURST),
        }
    }

    /// Whether one more sequence of a party may start, if so many rows cost little in all.
    pub(super) fn may_start(&self, party: Party, cheap: usize) -> bool {
        if self.is_alone() {
            return true;
        }
        let class = party.priority as usize;
        let sure = match party.priority > self.best {
            // One at a time, so that no class stands still.
            true => self.running[class] == 0,
            false => {
                let tenant = self.tenants.get(&party.tenant);
                let running = tenant.map_or(0, |tenant| tenant.running[class]);
                running < self.quota(party)
            }
        };
        sure || self.running.iter().sum::<usize>() < cheap
    }

    /// A tenant's part of so many slots or blocks.
    pub(super) fn part(&self, tenant: TenantId, total: usize) -> f64 {
        let weight = self.allowance(tenant).weight;
        total as f64 * weight / self.weight.max(weight)
    }

    /// Sequences of a tenant that run.
    pub(super) fn running(&self, tenant: TenantId) -> usize {
        let tenant = self.tenants.get(&tenant);
        tenant.map_or(0, |tenant| tenant.running.iter().sum())
    }

    /// Most of so many blocks that a tenant may have.
    pub(super) fn most_blocks(&self, tenant: TenantId, total: usize) -> usize {
        (self.allowance(tenant).kv_share * total as f64) as usize
    }

    fn allowance(&self, tenant: TenantId) -> Allowance {
        let tenant = self.tenants.get(&tenant);
        tenant.map_or_else(Allowance::default, |tenant| tenant.allowance)
    }
}
