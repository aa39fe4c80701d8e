"""What the data is: pure, no sockets, no clock. Everything else in slackwater imports from here, never the reverse."""
