"""The daemon `meshd`: one process per machine, idle until it is told to start or join a cluster."""
