//! Cleaning up: sessions that have ended, and leases that earlier processes left.

use super::{Daemon, Reaped, ReapedLease, count};
use crate::leases::{LeaseBook, Reaper, Which};

impl Daemon {
    /// Forgets sessions that have ended, and tries now to give back what earlier processes left at providers.
    ///
    /// # Errors
    ///
    /// Why the book of leases cannot be used.
    pub(crate) async fn reap(&self) -> Result<Reaped, String> {
        let forgotten = {
            let mut table = self.table();
            let forgotten = table.ended.len();
            table.ended.clear();
            forgotten
        };
        let book = LeaseBook::existing(&self.settings.state_dir).map_err(|error| error.to_string())?;
        let leases = match book {
            Some(book) => self.reap_leases(book).await?,
            None => Vec::new(),
        };
        Ok(Reaped {
            forgotten: count(forgotten),
            leases,
        })
    }

    async fn reap_leases(&self, book: LeaseBook) -> Result<Vec<ReapedLease>, String> {
        let (providers, secrets) = (self.app.providers.clone(), self.secrets.clone());
        let reaper = Reaper::new(
            book,
            Box::new(move |record| providers.of_record(record, &secrets)),
        )
        .sparing(self.app.leases.spared.clone());
        let pass = reaper.pass(Which::All { provider: None }, &self.draining);
        let reaped = Box::pin(pass).await.map_err(|error| error.to_string())?;
        Ok(reaped
            .into_iter()
            .map(|one| {
                let (outcome, detail) = one.outcome.told();
                ReapedLease {
                    entry: one.name,
                    outcome: outcome.to_owned(),
                    detail,
                }
            })
            .collect())
    }
}
