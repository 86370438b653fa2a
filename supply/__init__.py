"""What the gateway is made of: bill of materials, licences, foreign software and known holes, each by one command."""
