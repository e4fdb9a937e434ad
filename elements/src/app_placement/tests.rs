#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "holders_tests.rs"]
mod holders;

use super::*;
use armor_core::context::{Effect, Effects};
use armor_proto::ids::Incarnation;
use armor_proto::message::downcast;
use armor_proto::operation::Operation;

use crate::operations::StandbyElsewhere;

/// The element between nodes a, b and c, with what it has sent and told.
struct Bench {
    element: AppPlacement,
    setup: Setup,
    effects: Effects,
    /// The launch that reports speak of.
    launch: LaunchId,
    /// What its application wants.
    elsewhere: StandbyElsewhere,
}

const LAUNCH: LaunchId = LaunchId(7);

fn setup() -> Setup {
    Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() }
}

fn node(name: &str) -> ArmorId {
    ArmorId::of_name(name)
}

fn registered(armor: &str) -> AppRegisterServer {
    let row = crate::operations::ServerRow {
        address: armor_proto::hookup::Endpoint::new([127, 0, 0, 1].into(), 80),
        armor: node(armor),
        incarnation: Incarnation(1),
        service: "web".into(),
        policy: crate::operations::Policy::Request,
        deadline_ms: 1,
        settled_ms: None,
    };
    AppRegisterServer { row, request: 1, supervised: true, any_port: true }
}

impl Bench {
    fn new() -> Bench {
        let element = AppPlacement::new(Config::default(), &setup()).unwrap();
        let mut bench = Bench { element, setup: setup(), effects: Effects::new(), launch: LAUNCH, elsewhere: StandbyElsewhere(0) };
        for name in ["a", "b", "c"] {
            bench.there(name, &[]);
        }
        bench
    }

    fn call(&mut self, work: impl FnOnce(&mut AppPlacement, &mut Context<'_>)) {
        work(&mut self.element, &mut Context::detached(&self.setup, None, &mut self.effects));
    }

    /// As the work of the sender's message of this number.
    fn call_with(&mut self, number: u64, work: impl FnOnce(&mut AppPlacement, &mut Context<'_>)) {
        let mut message = Message::to(ArmorId::FTM, NodeBack { armor: node("a"), name: "a".into() });
        (message.source, message.id) = (node("a"), MessageId(9 << 32 | number));
        work(&mut self.element, &mut Context::detached(&self.setup, Some(&mut message), &mut self.effects));
    }

    fn there(&mut self, name: &str, launches: &[LaunchId]) {
        let there = AppOverseer { overseer: node(name), node: name.into(), labels: BTreeMap::new(), launches: launches.to_vec() };
        self.call(|element, context| element.overseer(&there, context));
    }

    fn report(&mut self, armor: &str, placement: &str, incarnation: u32) {
        self.reports(armor, placement, incarnation, ApplicationState::Running);
    }

    fn reports(&mut self, armor: &str, placement: &str, incarnation: u32, state: ApplicationState) {
        let spec = serde_json::json!({ "name": "web", "command": ["web"] });
        let mut spec: crate::operations::ApplicationSpec = serde_json::from_value(spec).unwrap();
        spec.placement = toml::from_str(placement).unwrap();
        spec.standby_elsewhere = self.elsewhere;
        let (overseer, at) = (node(armor), armor.split('/').next().unwrap().to_owned());
        let incarnation = Incarnation(incarnation);
        let report = AppReport { overseer, node: at, launch: self.launch, spec, incarnation, restarts: 3, state };
        self.call(|element, context| element.report(&report, context));
    }

    fn fails(&mut self, name: &str) {
        self.call(|element, context| element.node_failed(&NodeFailed { armor: node(name), name: name.into() }, context));
    }

    fn back(&mut self, name: &str) {
        self.call(|element, context| element.node_back(&NodeBack { armor: node(name), name: name.into() }, context));
    }

    fn answers(&mut self, armor: &str, order: &AppTakeOver, error: &str) {
        let (overseer, incarnation) = (node(armor), order.incarnation);
        let answer = AppTakenOver { name: "web".into(), launch: LAUNCH, incarnation, overseer, error: error.into() };
        self.call(|element, context| element.taken_over(&answer, context));
    }

    /// An Execution ARMOR for it is on this node.
    fn ready(&mut self, name: &str) {
        let ready = ArmorReady { name: "web".into(), armor: node(&format!("{name}/web")), run_dir: String::new(), error: String::new() };
        self.call(|element, context| element.armor_ready(&ready, context));
    }

    /// What was sent of a kind since it was last asked, and to whom.
    fn sent<O: Operation + Clone>(&mut self) -> Vec<(ArmorId, O)> {
        let mut sent = Vec::new();
        self.effects.retain(|effect| {
            let (Effect::Send(message) | Effect::SendReliable(message)) = effect else { return true };
            let Some(operation) = message.top().and_then(|bundle| downcast::<O>(&bundle.operations[0])) else { return true };
            sent.push((message.destination().unwrap(), operation.clone()));
            false
        });
        sent
    }

    fn order(&mut self) -> (ArmorId, AppTakeOver) {
        let mut orders = self.sent::<AppTakeOver>();
        assert_eq!(orders.len(), 1);
        orders.remove(0)
    }

    fn told(&self, what: &str) -> usize {
        self.effects.iter().filter(|effect| matches!(effect, Effect::Event(event) if event.what == what)).count()
    }
}

#[test]
fn an_application_goes_to_another_node_and_is_fenced_where_it_was() {
    let mut bench = Bench::new();
    bench.report("a", "", 4);
    bench.fails("a");
    let (to, order) = bench.order();
    assert_eq!((to, order.incarnation, order.restarts, order.moved_from.as_str()), (node("b"), Incarnation(65_536), 4, "a"));
    assert_eq!(bench.sent::<AppMoved>().len(), 1, "the right to its addresses goes along");
    assert!(bench.sent::<AppFence>().is_empty(), "nobody would hear it");
    bench.answers("b", &order, "");
    assert_eq!(bench.told("application-moved"), 1);
    bench.back("a");
    let fences = bench.sent::<AppFence>();
    assert_eq!((fences[0].0, fences[0].1.below, fences.len()), (node("a"), Incarnation(65_536), 1));
    // It has not come to that yet, and tells of what it runs.
    bench.report("a", "", 9);
    assert_eq!(bench.sent::<AppFence>().len(), 1);
    bench.call(|element, context| element.fence_done(&AppFenceDone { launch: LAUNCH, overseer: node("a") }, context));
    bench.back("a");
    assert!(bench.sent::<AppFence>().is_empty());
}

#[test]
fn nodes_that_refuse_fail_or_are_silent_are_followed_by_the_next_one() {
    let mut bench = Bench::new();
    bench.there("d", &[]);
    bench.report("a", "", 1);
    bench.fails("a");
    let (to, order) = bench.order();
    assert_eq!(to, node("b"));
    bench.answers("b", &order, "cannot start it");
    let (to, order) = bench.order();
    assert_eq!(to, node("c"));
    bench.fails("c");
    let (to, last) = bench.order();
    assert!(to == node("d") && last.incarnation > order.incarnation);
    let attempt = bench.element.table.applications[&LAUNCH].moving.as_ref().unwrap().attempt;
    bench.call(|element, context| element.timer(attempt, context));
    assert_eq!((bench.told("take-over-failed"), bench.told("no-node-left")), (3, 1));
    // A late answer is none any more, and what it has started is ended; a node that comes is asked at once.
    bench.answers("d", &last, "");
    assert_eq!(bench.told("application-moved"), 0);
    bench.back("c");
    let (to, order) = bench.order();
    assert!([node("b"), node("c"), node("d")].contains(&to) && order.incarnation > last.incarnation);
}

#[test]
fn an_application_that_does_not_migrate_waits_for_its_node() {
    let mut bench = Bench::new();
    bench.report("a", "migrate = false", 1);
    bench.fails("a");
    assert!(bench.sent::<AppTakeOver>().is_empty());
    assert_eq!(bench.told("application-waits-for-its-node"), 1);
    // A new life of the node, which knows nothing.
    bench.there("a", &[]);
    assert_eq!(bench.order().0, node("a"));
}

#[test]
fn an_application_that_was_only_out_of_sight_stays_where_it_is() {
    let mut bench = Bench::new();
    bench.report("a", "migrate = false", 1);
    bench.fails("a");
    bench.there("a", &[LAUNCH]);
    assert!(bench.sent::<AppTakeOver>().is_empty() && bench.sent::<AppFence>().is_empty());
}

#[test]
fn an_execution_armor_is_installed_first() {
    let mut bench = Bench::new();
    bench.report("a/web", "", 1);
    bench.fails("a");
    assert!(bench.sent::<AppTakeOver>().is_empty());
    assert_eq!(bench.sent::<InstallArmor>()[0].0, node("b"));
    bench.ready("b");
    assert_eq!(bench.order().0, node("b/web"));
}

#[test]
fn the_armor_that_an_application_has_is_not_uninstalled_when_its_node_is_cut_off_twice() {
    let mut bench = Bench::new();
    bench.report("a/web", "migrate = false", 1);
    bench.fails("a");
    bench.back("a");
    assert_eq!(bench.sent::<InstallArmor>()[0].0, node("a"));
    bench.fails("a");
    assert_eq!(bench.told("take-over-failed"), 1);
    assert!(bench.sent::<UninstallArmor>().is_empty(), "the application may be running there");
}

#[test]
fn an_armor_that_was_to_be_fenced_is_not_uninstalled_before_it_is() {
    let mut bench = Bench::new();
    bench.report("a/web", "nodes = [\"b\", \"a\"]", 1);
    bench.fails("a");
    bench.ready("b");
    let (_, order) = bench.order();
    bench.answers("b/web", &order, "");
    bench.there("a", &[]);
    bench.fails("c");
    bench.fails("b");
    assert_eq!(bench.sent::<InstallArmor>().last().map(|(to, _)| *to), Some(node("a")));
    bench.fails("a");
    assert!(bench.sent::<UninstallArmor>().is_empty());
    // And of what never was there nothing stays.
    bench.back("c");
    bench.fails("c");
    assert_eq!(bench.sent::<UninstallArmor>()[0].0, node("c"));
}

#[test]
fn an_order_to_uninstall_is_older_than_every_installation_after_it_over_lives_of_the_ftm() {
    let mut bench = Bench::new();
    bench.report("a/web", "nodes = [\"b\", \"a\"]", 1);
    bench.fails("a");
    let first = bench.sent::<InstallArmor>().remove(0).1.number;
    bench.ready("b");
    let (_, order) = bench.order();
    bench.answers("b/web", &order, "");
    bench.back("a");
    bench.call(|element, context| element.fence_done(&AppFenceDone { launch: LAUNCH, overseer: node("a/web") }, context));
    let (to, uninstall) = bench.sent::<UninstallArmor>().remove(0);
    assert!(to == node("a") && uninstall.number > first);
    let state = bench.element.capture().unwrap();
    bench.element = AppPlacement::new(Config::default(), &setup()).unwrap();
    bench.element.restore(&state).unwrap();
    // No process begins in the millisecond in which its last life ended.
    let ended = now_ms();
    while now_ms() == ended {
        std::thread::yield_now();
    }
    bench.fails("c");
    bench.fails("b");
    let (to, again) = bench.sent::<InstallArmor>().remove(0);
    assert!(to == node("a") && again.number > uninstall.number);
}

#[test]
fn an_armor_that_is_being_installed_is_not_uninstalled_because_its_last_life_was_fenced() {
    let mut bench = Bench::new();
    bench.report("a/web", "nodes = [\"b\", \"a\"]", 1);
    bench.fails("a");
    bench.ready("b");
    let (_, order) = bench.order();
    bench.answers("b/web", &order, "");
    bench.back("a");
    bench.fails("c");
    bench.fails("b");
    assert_eq!(bench.sent::<InstallArmor>().last().map(|(to, _)| *to), Some(node("a")));
    bench.call(|element, context| element.fence_done(&AppFenceDone { launch: LAUNCH, overseer: node("a/web") }, context));
    assert!(bench.sent::<UninstallArmor>().is_empty());
    bench.ready("a");
    assert_eq!(bench.order().0, node("a/web"));
}

#[test]
fn an_application_that_was_stopped_while_an_armor_for_it_was_installed_elsewhere_is_not_started_there() {
    let mut bench = Bench::new();
    bench.report("a/web", "", 1);
    bench.fails("a");
    let (to, install) = bench.sent::<InstallArmor>().remove(0);
    // Its operator had stopped it behind the link that was cut.
    bench.reports("a/web", "", 1, ApplicationState::Ended);
    let (from, uninstall) = bench.sent::<UninstallArmor>().remove(0);
    assert!(from == to && uninstall.number > install.number);
    bench.ready("b");
    assert!(bench.sent::<AppTakeOver>().is_empty());
    assert!(bench.element.table.applications.is_empty(), "nothing is left of it");
}

#[test]
fn a_move_of_what_has_ended_goes_no_further() {
    let mut bench = Bench::new();
    bench.report("a/web", "", 1);
    bench.fails("a");
    // It runs and ends elsewhere, so the FTM learns from a life that it had not known.
    bench.reports("c/web", "", 100_000, ApplicationState::Ended);
    bench.ready("b");
    assert!(bench.sent::<AppTakeOver>().is_empty());
    let attempt = bench.element.table.applications[&LAUNCH].moving.as_ref().unwrap().attempt;
    bench.call(|element, context| element.timer(attempt, context));
    assert!(bench.element.table.applications[&LAUNCH].moving.is_none() && bench.told("application-moving") == 1);
}

#[test]
fn addresses_of_a_service_that_was_launched_again_are_not_those_of_the_launch_that_is_over() {
    let mut bench = Bench::new();
    bench.report("a", "", 1);
    bench.fails("a");
    let (_, order) = bench.order();
    bench.answers("b", &order, "");
    let registered = registered("b");
    bench.call(|element, context| element.server(&registered, context));
    // It is over, but on a may be left something of it. Another launch follows.
    bench.reports("b", "", order.incarnation.0 + 1, ApplicationState::Ended);
    bench.launch = LaunchId(LAUNCH.0 + 1);
    bench.report("b", "", 1);
    bench.call(|element, context| element.server(&registered, context));
    bench.fails("b");
    let (to, order) = bench.order();
    let address = PlacedAddress { address: registered.row.address, any_port: true };
    assert_eq!((to, order.launch, order.addresses), (node("c"), bench.launch, vec![address]));
}

#[test]
fn an_address_that_was_closed_and_opened_again_is_not_lost_by_a_message_that_was_held_up() {
    let mut bench = Bench::new();
    bench.report("a", "", 1);
    let registered = registered("a");
    let gone = AppUnregisterServer { address: registered.row.address, armor: node("a") };
    let addresses = |bench: &Bench| bench.element.table.applications[&LAUNCH].addresses.len();
    bench.call_with(1, |element, context| element.server(&registered, context));
    bench.call_with(3, |element, context| element.server(&registered, context));
    bench.call_with(2, |element, context| element.no_server(&gone, context));
    assert_eq!(addresses(&bench), 1);
    bench.call_with(4, |element, context| element.no_server(&gone, context));
    assert_eq!(addresses(&bench), 0);
}

#[test]
fn a_move_goes_on_after_the_death_of_the_ftm() {
    let mut bench = Bench::new();
    bench.report("a", "", 1);
    bench.fails("a");
    let (to, order) = bench.order();
    let state = bench.element.capture().unwrap();
    bench.element = AppPlacement::new(Config::default(), &setup()).unwrap();
    assert!(bench.element.restore(b"garbage").is_err());
    bench.element.restore(&state).unwrap();
    bench.call(|element, context| element.start(context).unwrap());
    assert_eq!(bench.order(), (to, order.clone()), "the same order once more");
    bench.answers("b", &order, "");
    assert_eq!(bench.told("application-moved"), 1);
}

#[test]
fn a_report_that_comes_before_the_answer_to_an_order_does_not_undo_it_also_at_home() {
    let mut bench = Bench::new();
    bench.report("a", "migrate = false", 4);
    bench.fails("a");
    // It comes back as a new one.
    bench.there("a", &[]);
    let (to, order) = bench.order();
    assert_eq!(to, node("a"));
    bench.report("a", "migrate = false", order.incarnation.0 + 1);
    bench.answers("a", &order, "");
    assert_eq!((bench.told("application-moved"), bench.told("take-over-failed")), (1, 0));
    assert!(bench.element.table.applications[&LAUNCH].moving.is_none());
}

#[test]
fn what_has_ended_is_not_taken_for_forgotten_and_a_move_of_it_is_undone() {
    let mut bench = Bench::new();
    bench.report("a", "", 4);
    // Its daemon registers, and names all that it knows; what is over is reported behind that.
    bench.there("a", &[LAUNCH]);
    assert!(bench.sent::<AppTakeOver>().is_empty());
    bench.reports("a", "", 4, ApplicationState::Ended);
    assert!(bench.element.table.applications.is_empty());
    bench.report("a", "", 5);
    bench.fails("a");
    let (to, order) = bench.order();
    bench.reports("a", "", 6, ApplicationState::Ended);
    assert!(bench.sent::<AppFence>().iter().any(|(armor, fence)| *armor == to && fence.below > order.incarnation));
    bench.answers(if to == node("b") { "b" } else { "c" }, &order, "");
    assert_eq!(bench.told("application-moved"), 0);
}
