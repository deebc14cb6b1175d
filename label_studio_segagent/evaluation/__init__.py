"""How good an agent is on a data set: the protocol behind `segagent evaluate`."""
