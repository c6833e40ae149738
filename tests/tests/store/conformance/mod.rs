//! What every store promises; each sentence runs on both databases.

mod sessions;
mod ownership;
mod ledger;
mod records;

/// Makes a test of each sentence for each database. A macro, because nothing else can name tests.
macro_rules! on_both {
    ($($module:ident: $($sentence:ident)*;)*) => {
        mod on_sqlite {
            $($(
                #[tokio::test]
                async fn $sentence() {
                    super::$module::$sentence(crate::ground::Ground::sqlite().await).await;
                }
            )*)*
        }

        mod on_postgres {
            $($(
                #[tokio::test]
                async fn $sentence() {
                    if paperclip_bridge_tests::can_run(paperclip_bridge_tests::postgres::here()) {
                        super::$module::$sentence(crate::ground::Ground::postgres().await).await;
                    }
                }
            )*)*
        }
    };
}

on_both! {
    sessions:
        a_session_is_read_as_it_was_written
        what_changed_is_written_and_what_is_not_the_owners_stays
        sessions_are_listed_newest_first_and_by_owner
        a_revoked_session_is_known_to_its_owner_until_it_has_ended
        a_revoked_session_is_heard_of_at_once_where_there_is_something_to_listen_to
        an_ended_session_is_kept_for_its_time_and_goes_with_its_ledger;
    ownership:
        of_many_claimants_at_once_one_has_the_session
        many_daemons_that_take_over_at_once_never_take_the_same_session
        a_session_whose_owner_lives_is_not_taken
        a_lease_that_ran_out_is_taken_and_adds_one_to_the_fence
        a_writer_that_lost_its_session_is_refused
        a_restarted_daemon_takes_back_its_own_at_once_under_a_higher_fence
        what_only_one_daemon_can_serve_is_not_taken_by_another
        a_session_given_up_is_taken_at_once
        an_ended_session_is_nobodys
        a_late_renewal_holds_unless_somebody_was_faster;
    ledger:
        an_entry_is_committed_under_its_owner_fence_and_lease
        no_entry_is_written_for_an_old_fence
        no_entry_is_written_for_a_lease_that_ran_out
        no_entry_is_written_for_a_revoked_or_an_ended_session
        the_same_callback_is_never_entered_twice
        an_outcome_is_written_once
        what_an_earlier_owner_left_in_flight_is_indeterminate_and_stays_so
        a_takeover_between_dispatches_leaves_nothing_in_flight
        entries_are_found_by_key_and_newest_first
        old_entries_go_and_those_in_flight_stay;
    records:
        a_daemon_is_known_by_what_it_said_last_until_it_is_long_gone
        a_nonce_is_spent_once_however_many_ask
        a_nonce_goes_when_its_time_is_over
        an_audit_head_never_goes_back
        leases_and_cleanups_are_kept_until_they_are_removed
        a_store_that_can_be_written_is_ready;
}
