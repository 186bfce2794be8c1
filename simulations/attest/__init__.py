"""What an operator hands to an auditor: a registry record and a one-page privacy statement."""
