"""Published for tests of this project and of others: a STOMP client, an outlet in memory, suites for back ends."""
