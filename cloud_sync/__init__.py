"""The forwarder: reads the agent's sealed blocks and delivers them when the network allows. Not a medical device."""
